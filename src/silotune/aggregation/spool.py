"""A round's updates on the disk, for rules that must see all of them before they can use one."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from silotune.aggregation.interface import Contribution
from silotune.model.adapter import AdapterSpec, flatten, unflatten


@dataclass
class Spool:
    """Updates by silo; what is held in memory is one at a time."""

    folder: Path
    spec: AdapterSpec
    weights: dict[str, int] = field(default_factory=dict)
    _files: dict[str, Path] = field(default_factory=dict)

    def add(self, contribution: Contribution) -> NDArray[np.float32]:
        """Keep an update; returns it as one vector (spec.size,)."""
        vector = flatten({name: np.asarray(value, np.float32) for name, value in contribution.update.items()})
        path = self.folder / f"{len(self.weights)}.npy"
        np.save(path, vector)
        self.weights[contribution.silo], self._files[contribution.silo] = contribution.weight, path
        return vector

    def vectors(self) -> list[NDArray[np.float32]]:
        """All updates, memory-mapped, in the order of the silos' names."""
        return [np.load(self._files[silo], mmap_mode="r") for silo in sorted(self._files)]

    def contributions(self, scale: dict[str, float]) -> Iterator[Contribution]:
        """The updates again, in the order of the silos' names, each times a factor."""
        for silo in sorted(self._files):
            vector = np.load(self._files[silo])
            scaled = vector if scale[silo] == 1.0 else (vector * np.float64(scale[silo])).astype(np.float32)
            yield Contribution(silo, unflatten(scaled, self.spec), self.weights[silo])


@contextmanager
def spooled(spec: AdapterSpec) -> Iterator[Spool]:
    """A spool for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="silotune-updates-") as folder:
        yield Spool(Path(folder), spec)
