"""Federated methods: a file per method, with its `METHOD`. `find` returns one by its name in a recipe."""

import importlib

from silotune.algorithms.interface import Method


def find(name: str) -> Method:
    """Return the method of the module of that name; recipes are checked, so an unknown name is a defect.

    Raises:
        LookupError: no module here defines such a method.
    """
    try:
        found = getattr(importlib.import_module(f"{__name__}.{name}"), "METHOD", None)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        found = None
    if not isinstance(found, Method) or found.name != name:
        raise LookupError(f"no method is called {name!r}")
    return found
