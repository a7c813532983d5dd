"""A round's updates on the disk, for rules that must see all of them before they can use one."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from silotune.aggregation.interface import Contribution
from silotune.model.adapter import AdapterSpec, flatten, unflatten

CHUNK = 1 << 18
"""Numbers of each update that are worked on at a time."""


@dataclass
class Spool:
    """Updates by silo; what is held in memory is one at a time."""

    folder: Path
    spec: AdapterSpec
    files: dict[str, Path] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    """Euclidean, over all numbers of an update."""

    def add(self, contribution: Contribution) -> None:
        """Keep an update."""
        vector = flatten(contribution.update)
        file = self.folder / f"{len(self.files)}.bin"
        vector.tofile(file)
        self.files[contribution.silo], self.norms[contribution.silo] = file, _norm(vector)
        self.weights[contribution.silo] = contribution.weight

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """(silos, numbers) of all updates, some numbers after another; silos are in the order of their names."""
        files = [self.files[silo] for silo in sorted(self.files)]
        for start in range(0, self.spec.size, CHUNK):
            yield np.stack([np.fromfile(file, np.float32, CHUNK, offset=4 * start) for file in files])

    def contributions(self, scale: Mapping[str, float]) -> Iterator[Contribution]:
        """The updates again, in the order of the silos' names, each times a factor."""
        for silo in sorted(self.files):
            vector = np.fromfile(self.files[silo], np.float32)
            vector *= np.float32(scale[silo])
            yield Contribution(silo, unflatten(vector, self.spec), self.weights[silo])
            del vector


def _norm(vector: NDArray[np.float32]) -> float:
    """Summed in float64, a chunk at a time."""
    squares = 0.0
    for start in range(0, len(vector), CHUNK):
        chunk = vector[start : start + CHUNK].astype(np.float64)
        squares += float(chunk @ chunk)
    return float(np.sqrt(squares))


@contextmanager
def spooled(spec: AdapterSpec, contributions: Iterable[Contribution]) -> Iterator[Spool]:
    """All updates of a round, for as long as they are needed."""
    with tempfile.TemporaryDirectory(prefix="silotune-updates-") as folder:
        spool = Spool(Path(folder), spec)
        for contribution in contributions:
            spool.add(contribution)
            del contribution  # while the next one is waited for
        yield spool
