"""A file per thing: what a module of a package defines, found by the module's name."""

import importlib
from typing import Protocol, TypeVar


class Named(Protocol):
    """What knows its own name."""

    @property
    def name(self) -> str:
        """By which it is found."""
        ...


Thing = TypeVar("Thing", bound=Named)


def found(package: str, name: str, attribute: str, kind: type[Thing]) -> Thing:
    """What `package.name` defines as `attribute`; recipes are checked, so an unknown name is a defect.

    Raises:
        LookupError: no module there defines such a thing of its own name.
    """
    try:
        thing = getattr(importlib.import_module(f"{package}.{name}"), attribute, None)
    except ModuleNotFoundError as error:
        if error.name != f"{package}.{name}":
            raise
        thing = None
    if not isinstance(thing, kind) or thing.name != name:
        raise LookupError(f"no {attribute.lower()} is called {name!r}")
    return thing
