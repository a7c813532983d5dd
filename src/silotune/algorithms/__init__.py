"""Federated algorithms: a file a method. `find` returns one by its name in a recipe."""

from silotune.algorithms.fedavg import FEDAVG
from silotune.algorithms.interface import Algorithm

ALGORITHMS = {algorithm.name: algorithm for algorithm in (FEDAVG,)}


def find(name: str) -> Algorithm:
    """Return the algorithm of that name; recipes are checked, so an unknown name is a defect (KeyError)."""
    return ALGORITHMS[name]
