"""Rows of several silos as one list: what a model of all text pooled is trained on."""

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from silotune.data.tokenize.split import Split
from silotune.data.tokenize.tokens import Example


class Examples(Protocol):
    """What training and scoring take: a silo's own rows (`split.Split`) or several silos' together."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""

    def __len__(self) -> int:
        """How many examples."""

    def __getitem__(self, index: int, /) -> Example:
        """One of them."""


@dataclass(frozen=True)
class Joined:
    """Splits one after another."""

    parts: tuple[Split, ...]

    @functools.cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return np.concatenate([part.lengths for part in self.parts])

    @functools.cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Example:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part][index - int(self._ends[part]) + len(self.parts[part])]
