"""A silo's part of a round: so many steps of AdamW on its own rows, from the adapter that it received."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silotune.data.batches import Batch, collate, plan_round
from silotune.data.joined import Examples
from silotune.data.seeds import derive
from silotune.data.tokens import Example
from silotune.errors import DivergedError
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
        """Of all rows, padding left out."""
        return sum(len(example.ids) for rows in self.passes for example in rows)

    @property
    def loss_tokens(self) -> int:
        """Of those, how many carry loss."""
        return sum(example.loss_tokens for rows in self.passes for example in rows)


@dataclass
class Course:
    """A silo's way through a round: what its steps take, and what came of those that are done."""

    examples: Examples
    settings: TrainingSettings
    seed: int
    silo: str
    round: int
    report: Callable[[StepReport], None] = lambda _: None

    def __post_init__(self) -> None:
        self._plan = plan_round(self.settings, self.examples.lengths, self.seed, self.silo, self.round)
        self._loss, self._tokens, self._loss_tokens = 0.0, 0, 0

    def steps(self) -> Iterator[Step]:
        """The round's optimizer steps, in order."""
        for number, passes in enumerate(self._plan, 1):
            progress = (self.round - 1 + number / len(self._plan)) / self.settings.rounds
            yield Step(
                number,
                learning_rate(self.settings, progress),
                [[self.examples[row] for row in rows] for rows in passes],
            )

    def done(self, step: Step, loss: float, seconds: float) -> None:
        """Take note of a step that is done and report it.

        Args:
            step: from `steps`.
            loss: summed over its loss tokens, in nats.
            seconds: since the round's training began.

        Raises:
            DivergedError: the loss is not finite.
            Exception: whatever `report` raises to stop.
        """
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is not finite at step {step.number}; lower training.learning_rate")
        self._loss += loss
        self._tokens += step.tokens
        self._loss_tokens += step.loss_tokens
        mean = loss / max(step.loss_tokens, 1)
        self.report(StepReport(step.number, len(self._plan), mean, self._tokens, seconds))

    def totals(self, seconds: float) -> TrainingTotals:
        """What the whole round did, in so many seconds."""
        mean = self._loss / max(self._loss_tokens, 1)
        return TrainingTotals(len(self._plan), mean, self._tokens, self._loss_tokens, seconds)


def make_optimizer(parameters: Sequence[Any], settings: TrainingSettings) -> Any:
    """AdamW over LoRA factors; its rate is set step by step."""
    import torch

    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=settings.weight_decay, foreach=True)


Moments = dict[str, NDArray[np.float32]]
"""What AdamW has come to: `m/`, `v/` and `t/` before each tensor's name, of the tensor's own shape (`t/`: (1,))."""


def resume(optimizer: Any, tensors: Mapping[str, Any], moments: Moments) -> None:
    """Have a new AdamW start where another one ended; a tensor of which there is nothing starts anew."""
    import torch

    for name, tensor in tensors.items():
        if f"m/{name}" in moments:
            optimizer.state[tensor] = {
                "step": torch.tensor(float(moments[f"t/{name}"][0])),
                "exp_avg": torch.tensor(moments[f"m/{name}"], device=tensor.device),
                "exp_avg_sq": torch.tensor(moments[f"v/{name}"], device=tensor.device),
            }


def moments_of(optimizer: Any, tensors: Mapping[str, Any]) -> Moments:
    """The inverse of `resume`: copies of what an AdamW holds."""
    found: Moments = {}
    for name, tensor in tensors.items():
        held = optimizer.state[tensor]
        if not held:  # no row has reached it
            continue
        found[f"t/{name}"] = np.array([float(held["step"])], np.float32)
        found[f"m/{name}"] = held["exp_avg"].detach().cpu().numpy().copy()
        found[f"v/{name}"] = held["exp_avg_sq"].detach().cpu().numpy().copy()
    return found


def advance(optimizer: Any, rate: float, clip: float) -> None:
    """Clip the gradient of all the optimizer's parameters together, and take a step at a rate."""
    import torch

    (group,) = optimizer.param_groups
    group["lr"] = rate
    torch.nn.utils.clip_grad_norm_(group["params"], clip, foreach=True)
    optimizer.step()


def train_round(
    tuner: Tuner,
    ways: Ways,
    examples: Examples,
    settings: TrainingSettings,
    seed: int,
    silo: str,
    round_: int,
    report: Callable[[StepReport], None] = lambda _: None,
    trainable: Set[str] | None = None,
    moments: Moments | None = None,
) -> TrainingTotals:
    """Train the adapter that lies in the model, in place.

    On a CPU, same inputs and same number of threads give the same bits.

    Args:
        tuner: the resident model, with the received adapter in it.
        ways: the short ways through it (`forward.ways_of`).
        examples: the silo's training rows (or those of all, pooled).
        settings: of the training.
        seed: of the run.
        silo: the silo's name, part of every seed.
        round_: from 1.
        report: called after each optimizer step; may raise to stop.
        trainable: names of the adapter's tensors that are trained, the others stay as they are; None: all.
        moments: what the optimizer starts from, and, when the round is done, what it has come to; those of tensors that
            are not trained stay. None: it starts anew, and nothing is kept.

    Raises:
        DivergedError: the loss is not finite.
    """
    import torch

    from silotune.training.corrections import proximal

    model, pad = tuner.model, int(tuner.tokenizer.pad_token_id or 0)
    course = Course(examples, settings, seed, silo, round_, report)
    torch.manual_seed(derive(seed, "dropout", silo, round_))
    model.train()
    began = time.monotonic()
    with lora.trainable(model, tuner.spec.names if trainable is None else trainable) as tensors:
        factors = list(tensors.values())
        optimizer, correct = make_optimizer(factors, settings), proximal(settings.proximal, factors)
        resume(optimizer, tensors, moments or {})
        try:
            for step in course.steps():
                optimizer.zero_grad(set_to_none=True)
                batches = [collate(rows, pad, tuner.device) for rows in step.passes]
                loss = _differentiated(model, ways, step.loss_tokens, batches)
                correct(factors)
                advance(optimizer, step.rate, settings.clip)
                course.done(step, loss, time.monotonic() - began)
            if moments is not None:
                moments |= moments_of(optimizer, tensors)
        finally:
            model.eval()
            optimizer.zero_grad(set_to_none=True)
    return course.totals(time.monotonic() - began)


def _differentiated(model: Any, ways: Ways, count: int, batches: list[Batch]) -> float:
    """Add up the gradient of the mean loss over `count` loss tokens; returns the summed loss."""
    total = 0.0
    for batch in batches:
        loss, _ = loss_and_correct(model, batch, ways)
        (loss / max(count, 1)).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total
