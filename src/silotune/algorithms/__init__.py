"""Federated algorithms: a file a method, with its `ALGORITHM`. `find` returns one by its name in a recipe."""

import importlib

from silotune.algorithms.interface import Algorithm


def find(name: str) -> Algorithm:
    """Return the algorithm of the module of that name; recipes are checked, so an unknown name is a defect.

    Raises:
        LookupError: no module here defines such an algorithm.
    """
    try:
        found = getattr(importlib.import_module(f"{__name__}.{name}"), "ALGORITHM", None)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        found = None
    if not isinstance(found, Algorithm) or found.name != name:
        raise LookupError(f"no algorithm is called {name!r}")
    return found
