"""Some rows of a store: what is trained on, or what is held out."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from silotune.data.tokenize.store import Store
from silotune.data.tokenize.tokens import Example


@dataclass(frozen=True)
class Split(Sequence[Example]):
    """Some rows of a store, as the examples that training and evaluation take."""

    store: Store
    chosen: NDArray[np.int64]
    """Rows of the store, rising."""

    @functools.cached_property
    def _examples(self) -> NDArray[np.int64]:
        member = np.zeros(self.store.size, np.bool_)
        member[self.chosen] = True
        return np.flatnonzero(member[self.store.rows])

    @functools.cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        offsets = self.store.offsets
        return np.asarray(offsets[self._examples + 1] - offsets[self._examples])

    @property
    def row_of(self) -> NDArray[np.int32]:
        """(examples,): the row of the store that each example is of."""
        return np.asarray(self.store.rows[self._examples])

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = int(self._examples[index])
        start, end = int(self.store.offsets[number]), int(self.store.offsets[number + 1])
        row = self.store.rows[number]
        cut, answer_cut = bool(self.store.cut[row]), bool(self.store.answer_cut[row])
        return Example(self.store.ids[start:end], self.store.answered[start:end], cut, answer_cut)

    @property
    def questions(self) -> NDArray[np.int64]:
        """For each row that has a question, the number of the example with its last answer, rising."""
        row_of = self.row_of
        last = np.flatnonzero(np.append(row_of[1:] != row_of[:-1], True)) if len(row_of) else np.zeros(0, np.int64)
        return np.array([index for index in last.tolist() if self[index].last_answer], np.int64)

    @property
    def rows(self) -> int:
        """Rows, lost ones too."""
        return len(self.chosen)

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return int(self.lengths.sum())

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss, over all examples."""
        return int(self.store.loss_tokens[self._examples].sum())

    @property
    def cut(self) -> int:
        """Rows that were shortened in the user's text, or by early exchanges, to fit."""
        return int(self.store.cut[self.chosen].sum())

    @property
    def shortened(self) -> int:
        """Rows that were shortened in whatever way."""
        return int((self.store.cut[self.chosen] | self.store.answer_cut[self.chosen]).sum())

    @property
    def answer_cut(self) -> int:
        """Rows in which the answer lost its end."""
        return int(self.store.answer_cut[self.chosen].sum())

    @property
    def thoughts_dropped(self) -> int:
        """Rows of which the template leaves out what the assistant thought before an answer."""
        return int(self.store.thoughts_dropped[self.chosen].sum())

    @property
    def lost(self) -> int:
        """Rows of which no token of an answer fits."""
        return self.rows - len(np.unique(self.store.rows[self._examples]))

    @property
    def text_bytes(self) -> int:
        """Bytes of their text in UTF-8."""
        return int(self.store.text_bytes[self.chosen].sum())
