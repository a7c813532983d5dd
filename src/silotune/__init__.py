"""silotune: fine-tune a language model together with organisations that may not share their text.

import silotune

run = silotune.train("recipe.toml")
print(run.answer("When are you open?"))
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from silotune.api import Run, check, open_run, train
    from silotune.errors import (
        AdmissionError,
        DataError,
        DivergedError,
        FederationError,
        InputError,
        Interrupted,
        LengthError,
        ModelError,
        OutputError,
        RecipeError,
        RunError,
        SilotuneError,
    )
    from silotune.federation.events import Event
    from silotune.inference.generation import Sampling
    from silotune.recipe import load_recipe
    from silotune.settings import Recipe

__version__ = "0.1.0"

_HOMES = {
    "Run": "api",
    "check": "api",
    "open_run": "api",
    "train": "api",
    "Event": "federation.events",
    "Sampling": "inference.generation",
    "Recipe": "settings",
    "load_recipe": "recipe",
    "AdmissionError": "errors",
    "DataError": "errors",
    "DivergedError": "errors",
    "FederationError": "errors",
    "InputError": "errors",
    "Interrupted": "errors",
    "LengthError": "errors",
    "ModelError": "errors",
    "OutputError": "errors",
    "RecipeError": "errors",
    "RunError": "errors",
    "SilotuneError": "errors",
}

__all__ = [
    "AdmissionError",
    "DataError",
    "DivergedError",
    "Event",
    "FederationError",
    "InputError",
    "Interrupted",
    "LengthError",
    "ModelError",
    "OutputError",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "Sampling",
    "SilotuneError",
    "check",
    "load_recipe",
    "open_run",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import silotune` stays quick and loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'silotune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"silotune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
