"""Which rows a round trains on, in which batches: a function of the seed, the silo and the round alone.

No state is kept, so a resumed run and a silo that starts a new process for every message see the same batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from silotune.data.seeds import derive
from silotune.data.tokenize.tokens import Example
from silotune.errors import DataError
from silotune.settings import TrainingSettings

if TYPE_CHECKING:  # it takes seconds to load, and plans need none of it
    from torch import Tensor

DEFAULT_STEPS = 20
MOST_ROWS = 1_000_000
"""Rows of a round at most, counted each time that they are trained on: the plan of a round is held in memory."""


def steps_in_round(settings: TrainingSettings, rows: int) -> int:
    """Optimizer steps per round, for a silo with that many training rows."""
    if settings.epochs is None:
        return settings.steps or DEFAULT_STEPS
    return max(1, round(settings.epochs * rows / (settings.batch * settings.accumulation)))


def plan_round(
    settings: TrainingSettings, lengths: NDArray[np.int64], seed: int, silo: str, round_: int
) -> list[list[list[int]]]:
    """Row numbers of a round: [step][forward pass][row].

    Rounds walk on through shuffled passes over the rows, each row once a pass. Within a round, rows of similar
    length share a forward pass (less padding) and forward passes come in shuffled order.

    Args:
        settings: steps or epochs, batch and accumulation.
        lengths: tokens of each training row.
        seed: of the run.
        silo: name of the silo.
        round_: from 1.

    Raises:
        DataError: a round of more than `MOST_ROWS` rows.
    """
    steps = steps_in_round(settings, len(lengths))
    passes = steps * settings.accumulation
    if passes * settings.batch > MOST_ROWS:
        raise DataError(
            f"a round would train on {passes * settings.batch} rows, at most {MOST_ROWS} are planned. Lower "
            "training.steps or epochs, batch or accumulation, and take more rounds."
        )
    first = (round_ - 1) * passes * settings.batch
    rows = _walk(first, passes * settings.batch, len(lengths), seed, silo)
    rows.sort(key=lambda row: int(lengths[row]))
    batches = [rows[start : start + settings.batch] for start in range(0, len(rows), settings.batch)]
    order = np.random.default_rng(derive(seed, "order", silo, round_)).permutation(passes)
    shuffled = [batches[index] for index in order]
    return [shuffled[start : start + settings.accumulation] for start in range(0, passes, settings.accumulation)]


def _walk(first: int, count: int, rows: int, seed: int, silo: str) -> list[int]:
    """Rows number first .. first + count - 1 of endless shuffled passes over all rows."""
    walked: list[int] = []
    while len(walked) < count:
        number, start = divmod(first + len(walked), rows)
        order = np.random.default_rng(derive(seed, "pass", silo, number)).permutation(rows)
        walked += order[start : start + count - len(walked)].tolist()
    return walked


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to the longest of them, as tensors on the model's device."""

    ids: "Tensor"
    """int64 (rows, length)."""
    mask: "Tensor"
    """int64 (rows, length): 1 where there is a token."""
    predicts: "Tensor"
    """bool (rows, length): whether the next token of this position carries loss."""
    shared: int = 0
    """Tokens that all rows of a silo begin with and that carry no loss."""
    silos: int = 1
    """The rows are those of so many silos, one after another, equally many of each."""

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss."""
        return int(self.predicts.sum())

    @property
    def loss_tokens_of_silos(self) -> list[int]:
        """Tokens that carry loss, of each silo."""
        counts: list[int] = self.predicts.reshape(self.silos, -1).sum(-1).tolist()
        return counts


def collate(examples: Sequence[Example], pad: int, device: str) -> Batch:
    """Make a batch; `pad` fills up and is masked everywhere, so any token id will do."""
    import torch

    length = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), length), pad, dtype=torch.int64)
    mask = torch.zeros((len(examples), length), dtype=torch.int64)
    predicts = torch.zeros((len(examples), length), dtype=torch.bool)
    for index, example in enumerate(examples):
        size = len(example.ids)
        ids[index, :size] = torch.from_numpy(example.ids.astype(np.int64))
        mask[index, :size] = 1
        predicts[index, : size - 1] = torch.from_numpy(example.answered[1:].astype(np.bool_))
    return Batch(ids.to(device), mask.to(device), predicts.to(device), _shared_start(examples))


def collate_silos(silos: Sequence[Sequence[Example]], pad: int, device: str) -> Batch:
    """Make one batch of several silos' examples, equally many of each; `pad` as in `collate`."""
    batch = collate([example for examples in silos for example in examples], pad, device)
    return replace(batch, silos=len(silos), shared=min(_shared_start(examples) for examples in silos))


def _shared_start(examples: Sequence[Example]) -> int:
    """Tokens that all examples begin with, as far as none of them carries loss."""
    if len(examples) < 2:
        return 0
    most = min(min(len(example.ids), int(np.argmax(example.answered))) for example in examples)
    first = examples[0].ids[:most]
    alike = np.ones(most, np.bool_)
    for example in examples[1:]:
        alike &= example.ids[:most] == first
    return most if alike.all() else int(np.argmin(alike))


def by_length(lengths: NDArray[np.int64], tokens: int) -> list[list[int]]:
    """Row numbers in batches of similar length, each of `tokens` tokens at most with its padding (or of one row)."""
    batches: list[list[int]] = []
    for row in np.argsort(lengths, kind="stable").tolist():
        if batches and (len(batches[-1]) + 1) * int(lengths[row]) <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
