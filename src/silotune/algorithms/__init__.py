"""Federated methods: a file per method, with its `METHOD`. `find` returns one by its name in a recipe."""

from silotune import named
from silotune.algorithms.interface import Method


def find(name: str) -> Method:
    """Return the method of the module of that name.

    Raises:
        LookupError: no module here defines such a method.
    """
    return named.found(__name__, name, "METHOD", Method)
