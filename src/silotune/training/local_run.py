"""A silo's way through a round: the rows and the rate of each step, and what came of those that are done."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from silotune.data.silos.batches import plan_round
from silotune.data.silos.joined import Examples
from silotune.data.tokenize.tokens import Example
from silotune.errors import DivergedError
from silotune.model.adapter import AdapterState
from silotune.settings import TrainingSettings
from silotune.training.optimizer import Moments


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
class TrainingTask:
    """What a silo does in a round."""

    silo: str
    """Its name, part of every seed."""
    examples: Examples
    """Its training rows (or those of several silos, pooled)."""
    adapter: AdapterState
    """That it received."""
    trainable: frozenset[str]
    """Names of its tensors that are trained; the others stay as they are."""
    report: Callable[[StepReport], None] = lambda _: None
    """Called after each optimizer step; may raise to stop. Where silos are trained together, its seconds are the silo's
    share, as in the totals."""
    moments: Moments | None = None
    """What the optimizer starts from, and, when the round is done, what it has come to; those of tensors that are not
    trained stay. None: it starts anew, and nothing is kept."""
    drift: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """What to subtract from each trained tensor after each step, per unit of learning rate."""


@dataclass(frozen=True)
class TrainingTotals:
    """What a round of local training did."""

    steps: int
    loss: float
    """Mean over all loss tokens of the round, each at its own step, in nats."""
    tokens: int
    loss_tokens: int
    rates: float
    """Sum of the steps' learning rates."""
    seconds: float


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


@dataclass(frozen=True)
class Step:
    """What an optimizer step of a silo takes."""

    number: int
    """From 1."""
    rate: float
    """Learning rate."""
    passes: list[list[Example]]
    """Its rows, by forward pass."""

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows, without padding."""
        return sum(len(example.ids) for rows in self.passes for example in rows)

    @property
    def loss_tokens(self) -> int:
        """Number of these tokens that carry loss."""
        return sum(example.loss_tokens for rows in self.passes for example in rows)


@dataclass
class LocalRun:
    """A silo's way through a round: what its steps take, and what came of those that are done."""

    task: TrainingTask
    settings: TrainingSettings
    seed: int
    round: int

    def __post_init__(self) -> None:
        self._plan = plan_round(self.settings, self.task.examples.lengths, self.seed, self.task.silo, self.round)
        self._loss, self._rates, self._tokens, self._loss_tokens = 0.0, 0.0, 0, 0

    def steps(self) -> Iterator[Step]:
        """The round's optimizer steps, in order."""
        for number, passes in enumerate(self._plan, 1):
            progress = (self.round - 1 + number / len(self._plan)) / self.settings.rounds
            yield Step(
                number,
                learning_rate(self.settings, progress),
                [[self.task.examples[row] for row in rows] for rows in passes],
            )

    def done(self, step: Step, loss: float, seconds: float) -> None:
        """Take note of a step that is done and report it.

        Args:
            step: from `steps`.
            loss: summed over its loss tokens, in nats.
            seconds: since the round's training began.

        Raises:
            DivergedError: the loss is not finite.
            Exception: whatever the task's `report` raises to stop.
        """
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is not finite at step {step.number}; lower training.learning_rate")
        self._loss += loss
        self._rates += step.rate
        self._tokens += step.tokens
        self._loss_tokens += step.loss_tokens
        mean = loss / max(step.loss_tokens, 1)
        self.task.report(StepReport(step.number, len(self._plan), mean, self._tokens, seconds))

    def totals(self, seconds: float) -> TrainingTotals:
        """What the whole round did, in so many seconds."""
        mean = self._loss / max(self._loss_tokens, 1)
        return TrainingTotals(len(self._plan), mean, self._tokens, self._loss_tokens, self._rates, seconds)
