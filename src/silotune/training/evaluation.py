"""Held-out loss and token accuracy of the adapter that lies in the model.

A silo scores its own rows with this, whoever trained the adapter; only sums need leave it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from silotune.data.silos.batches import Batch, by_length, collate
from silotune.data.silos.joined import Examples
from silotune.model.tuner import Tuner
from silotune.training.forward import ForwardPlan, each_token

TOKENS = 4096
"""Tokens in a forward pass of evaluation, padding included."""


@dataclass(frozen=True)
class Score:
    """Sums over a silo's held-out rows, so that scores of several silos can be added."""

    rows: int
    tokens: int
    """Tokens that carry loss."""
    loss: float
    """Sum of the cross-entropy over them, in nats."""
    correct: int
    """How many of them were the model's first choice."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Scores:
    """The sums of `Score` per example, each of shape (examples,)."""

    loss: NDArray[np.float64]
    tokens: NDArray[np.int64]
    correct: NDArray[np.int64]


def evaluate(
    tuner: Tuner, forward_plan: ForwardPlan, examples: Examples, report: Callable[[], None] = lambda: None
) -> Score:
    """Score the adapter that lies in the model on rows; `report` is called after each batch and may raise to stop."""
    began = time.monotonic()
    each = score_each(tuner, forward_plan, examples, report)
    sums = int(each.tokens.sum()), float(each.loss.sum()), int(each.correct.sum())
    return Score(len(examples), *sums, time.monotonic() - began)


def score_each(
    tuner: Tuner, forward_plan: ForwardPlan, examples: Examples, report: Callable[[], None] = lambda: None
) -> Scores:
    """Like `evaluate`, for each example apart."""
    model, pad = tuner.model, int(tuner.tokenizer.pad_token_id or 0)
    model.eval()
    loss = np.zeros(len(examples))
    tokens, correct = np.zeros(len(examples), np.int64), np.zeros(len(examples), np.int64)
    for rows in by_length(examples.lengths, TOKENS):
        batch = collate([examples[row] for row in rows], pad, tuner.device)
        losses, first = each_token(model, batch, forward_plan)
        tokens[rows] = batch.predicts.sum(1).cpu().numpy()
        loss[rows], correct[rows] = summed(batch, losses), summed(batch, first)
        report()
    return Scores(loss, tokens, correct)


def summed(batch: Batch, values: Tensor) -> NDArray[np.float64]:
    """(rows,): sums over each row's loss tokens, of a tensor (loss tokens,)."""
    rows = batch.predicts.nonzero()[:, 0].cpu().numpy()
    return np.bincount(rows, values.double().cpu().numpy(), len(batch.ids)).astype(np.float64)
