"""Held-out loss and token accuracy of the adapter that lies in the model."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from silotune.data.batches import by_length, collate
from silotune.data.store import Split
from silotune.model.tuner import Tuner
from silotune.training.forward import Ways, loss_and_correct

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


def evaluate(tuner: Tuner, ways: Ways, examples: Split, report: Callable[[], None] = lambda: None) -> Score:
    """Score the adapter that lies in the model on rows; `report` is called after each batch and may raise to stop."""
    import torch

    model, pad = tuner.model, int(tuner.tokenizer.pad_token_id or 0)
    model.eval()
    began = time.monotonic()
    loss, tokens, correct = 0.0, 0, 0
    with torch.no_grad():
        for rows in by_length(examples.lengths, TOKENS):
            batch = collate([examples[row] for row in rows], pad, tuner.device)
            batch_loss, batch_correct = loss_and_correct(model, batch, ways)
            loss += float(batch_loss)
            correct += batch_correct
            tokens += batch.loss_tokens
            report()
    return Score(len(examples), tokens, loss, correct, time.monotonic() - began)
