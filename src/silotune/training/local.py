"""A silo's part of a round: so many steps of AdamW on its own rows, from the adapter that it received."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from silotune.data.batches import Batch, collate, plan_round
from silotune.data.joined import Examples
from silotune.data.seeds import derive
from silotune.errors import SilotuneError
from silotune.model import lora
from silotune.model.tuner import Tuner
from silotune.settings import TrainingSettings
from silotune.training.forward import Ways, loss_and_correct


@dataclass(frozen=True)
class StepReport:
    """What is known after an optimizer step; stays on the silo's machine but for the totals of a round."""

    step: int
    """From 1."""
    steps: int
    loss: float
    """Mean over the step's loss tokens, in nats."""
    tokens: int
    """Tokens computed so far in this round, padding left out."""
    seconds: float
    """Since the round's training began."""


@dataclass(frozen=True)
class TrainingTotals:
    """What a round of local training did."""

    steps: int
    loss: float
    """Mean over all loss tokens of the round, each at its own step, in nats."""
    tokens: int
    loss_tokens: int
    seconds: float


class DivergedError(SilotuneError):
    """The loss is no longer finite."""

    exit_code = 3


def learning_rate(settings: TrainingSettings, progress: float) -> float:
    """The rate at a point of the whole run, all rounds counted.

    Rises from 0 over the share `warmup`, then falls on a cosine to `final_rate` times the peak at progress 1.

    Args:
        settings: peak, warm-up and final share.
        progress: share of the run that is done when the step is complete, in (0, 1].
    """
    if settings.warmup and progress < settings.warmup:
        return settings.learning_rate * progress / settings.warmup
    fallen = (progress - settings.warmup) / (1 - settings.warmup)
    cosine = (1 + math.cos(math.pi * fallen)) / 2
    return settings.learning_rate * (settings.final_rate + (1 - settings.final_rate) * cosine)


def train_round(
    tuner: Tuner,
    ways: Ways,
    examples: Examples,
    settings: TrainingSettings,
    seed: int,
    silo: str,
    round_: int,
    report: Callable[[StepReport], None] = lambda _: None,
) -> TrainingTotals:
    """Train the factors that lie in the model, in place.

    The optimizer starts anew each round: a silo keeps no state between rounds, so any silo may miss a round and a
    resumed run is the same to the bit. On a CPU, same inputs and same number of threads give the same bits.

    Args:
        tuner: the resident model, with the received adapter in it.
        ways: the short ways through it (`forward.ways_of`).
        examples: the silo's training rows (or those of all, pooled).
        settings: of the training.
        seed: of the run.
        silo: the silo's name, part of every seed.
        round_: from 1.
        report: called after each optimizer step; may raise to stop.

    Raises:
        DivergedError: the loss is not finite.
    """
    import torch

    model, pad = tuner.model, int(tuner.tokenizer.pad_token_id or 0)
    parameters = list(lora.factors(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=settings.weight_decay, foreach=True)
    plan = plan_round(settings, examples.lengths, seed, silo, round_)
    torch.manual_seed(derive(seed, "dropout", silo, round_))
    model.train()
    began = time.monotonic()
    total_loss, tokens, loss_tokens = 0.0, 0, 0
    try:
        for number, step in enumerate(plan, 1):
            chosen = [[examples[row] for row in rows] for rows in step]
            count = sum(example.loss_tokens for rows in chosen for example in rows)
            rate = learning_rate(settings, (round_ - 1 + number / len(plan)) / settings.rounds)
            optimizer.param_groups[0]["lr"] = rate
            batches = [collate(rows, pad, tuner.device) for rows in chosen]
            loss = _step(model, ways, parameters, optimizer, settings.clip, count, batches)
            if not math.isfinite(loss):
                raise DivergedError(f"the loss is not finite at step {number}; lower training.learning_rate")
            total_loss += loss
            loss_tokens += count
            tokens += sum(len(example.ids) for rows in chosen for example in rows)
            report(StepReport(number, len(plan), loss / max(count, 1), tokens, time.monotonic() - began))
    finally:
        model.eval()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.monotonic() - began
    return TrainingTotals(len(plan), total_loss / max(loss_tokens, 1), tokens, loss_tokens, seconds)


def _step(
    model: Any, ways: Ways, parameters: list[Any], optimizer: Any, clip: float, count: int, batches: list[Batch]
) -> float:
    """One optimizer step on the mean loss over `count` loss tokens; returns the summed loss."""
    import torch

    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss, _ = loss_and_correct(model, batch, ways)
        (loss / max(count, 1)).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
    optimizer.step()
    return total
