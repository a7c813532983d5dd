"""Several silos' rounds in one pass over the base that they share: for silos whose batches are small.

The rows of a forward pass are those of several silos, and each goes through its own silo's adapter (`model.stacked`).
All else is a silo's own: its loss is the mean over its own tokens, its gradient is clipped by its own norm, it has an
optimizer of its own, and its rate follows its own steps. The gradient of the sum of the losses is, for each silo's
factors, that of its own loss. So the result is that of training them one after another but for rounding: sums are taken
in another order. A silo that has done its steps takes no further part, and one that fails leaves the others alone.

All rows of a pass are padded to the longest. As each silo's steps depend on none of another's, they need not keep pace:
a silo whose next rows are too long waits until the others come to such rows (`in_one_pass`).
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from silotune.data.silos.batches import Batch, collate_silos
from silotune.data.tokenize.tokens import Example
from silotune.model import lora
from silotune.model.adapter import AdapterState, initial_adapter
from silotune.model.protocols import LoraLinear, TunedModel
from silotune.model.stacked import factors_like, stacked
from silotune.model.trial import succeeds
from silotune.model.tuner import Tuner, while_resident
from silotune.settings import TrainingSettings
from silotune.training.corrections import Correction, correction
from silotune.training.forward import ForwardPlan
from silotune.training.gradients import cross_entropy, of_means
from silotune.training.kept import drops_out, same
from silotune.training.local_run import LocalRun, Step, TrainingTask, TrainingTotals
from silotune.training.loss import plain_logits
from silotune.training.optimizer import Moments, advance, make_optimizer, moments_of, resume

PASS: dict[str, int] = {"cpu": 32, "cuda": 1 << 20}
"""A pass costs as much as so many tokens on top of its own: by how much longer its rows may get for one more silo."""


@dataclass(frozen=True)
class TrainingOutcome:
    """What a silo's round came to: an adapter, or the exception that ended it."""

    totals: TrainingTotals | None = None
    """Its seconds are the silo's share of those of all: of each step, as its tokens are to those of all silos."""
    adapter: AdapterState | None = None
    error: Exception | None = None

    def result(self) -> tuple[TrainingTotals, AdapterState]:
        """Totals and adapter; raises what ended the silo's round."""
        if self.error is not None:
            raise self.error
        assert self.totals is not None and self.adapter is not None
        return self.totals, self.adapter


@dataclass
class _Silo:
    """A silo on its way through the round."""

    local_run: LocalRun
    steps: Iterator[Step]
    factors: dict[str, Tensor]
    optimizer: AdamW
    moments: Moments | None
    trained: dict[str, Tensor]
    correct: Correction
    step: Step | None = None
    """That is next; None before the first and after the last."""
    seconds: float = 0.0
    error: Exception | None = None

    def attempt(self, work: Callable[[], object]) -> None:
        """Do something that concerns this silo alone; an exception ends its round, and no other's."""
        try:
            work()
        except Exception as error:
            self.error, self.step = error, None

    def close(self, step: Step, loss: float, seconds: float) -> None:
        """Take note of a step that is done, and go on to the next."""
        self.seconds += seconds
        self.local_run.done(step, loss, self.seconds)
        self.open()

    def open(self) -> None:
        """Go on to the next step."""
        self.step = next(self.steps, None)


def train_together(
    tuner: Tuner,
    forward_plan: ForwardPlan,
    tasks: Sequence[TrainingTask],
    settings: TrainingSettings,
    seed: int,
    round_: int,
) -> list[TrainingOutcome]:
    """Train several silos' adapters in one pass; what lies in the model afterwards is none of them.

    Only where `can_stack` says so is the result that of separate training.

    Args:
        tuner: the resident model.
        forward_plan: the short ways through it (`forward.forward_plan_of`).
        tasks: of the silos.
        settings: of the training.
        seed: of the run.
        round_: from 1.

    Returns:
        An outcome for each task, in their order.
    """
    silos = [_started(task, tuner.model, settings, seed, round_) for task in tasks]
    tuner.model.train()
    try:
        while steps := {number: silo.step for number, silo in enumerate(silos) if silo.step is not None}:
            chosen = in_one_pass(steps, PASS[tuner.device])
            _step(tuner, forward_plan, [(silos[number], steps[number]) for number in chosen], settings.clip)
    finally:
        tuner.model.eval()
    return [_outcome(silo) for silo in silos]


def _started(task: TrainingTask, tuned: TunedModel, settings: TrainingSettings, seed: int, round_: int) -> _Silo:
    local_run = LocalRun(task, settings, seed, round_)
    factors = factors_like(tuned, task.adapter, task.trainable)
    trained = {name: factor for name, factor in factors.items() if name in task.trainable}
    optimizer = make_optimizer(trained.values(), settings)
    resume(optimizer, trained, task.moments or {})
    correct = correction(settings.proximal, task.drift, trained)
    silo = _Silo(local_run, local_run.steps(), factors, optimizer, task.moments, trained, correct)
    silo.attempt(silo.open)
    return silo


def in_one_pass(steps: Mapping[int, Step], cost: int) -> list[int]:
    """Which of the silos' next steps to do in one pass: the shortest, and longer ones while padding is worth a pass.

    Args:
        steps: of each silo, by its number.
        cost: of a forward and backward pass on top of its tokens, in tokens.

    Returns:
        Numbers of silos, in order.
    """
    sizes = {number: sum(len(rows) * _longest(rows) for rows in step.passes) for number, step in steps.items()}
    chosen: list[int] = []
    for number in sorted(steps, key=lambda number: (sizes[number], number)):
        if chosen and len(chosen) * (sizes[number] - sizes[chosen[-1]]) > cost * len(steps[number].passes):
            break
        chosen.append(number)
    return sorted(chosen)


def _longest(rows: Sequence[Example]) -> int:
    return max(len(example.ids) for example in rows)


def _step(tuner: Tuner, forward_plan: ForwardPlan, taken: Sequence[tuple[_Silo, Step]], clip: float) -> None:
    """One optimizer step of each of these silos."""
    began = time.monotonic()
    for silo, _ in taken:
        silo.optimizer.zero_grad(set_to_none=True)
    pad = int(tuner.tokenizer.pad_token_id or 0)
    passes = [sorted(step.passes, key=_longest) for _, step in taken]  # their order within a step is of no matter
    batches = [collate_silos(rows, pad, tuner.device) for rows in zip(*passes, strict=True)]
    with stacked(tuner.model, [silo.factors for silo, _ in taken]):
        losses = of_means(cross_entropy(tuner, forward_plan), batches, [step.loss_tokens for _, step in taken])
    for silo, step in taken:
        advance(silo.optimizer, silo.correct, step.rate, clip)
    share = (time.monotonic() - began) / sum(step.tokens for _, step in taken)
    for (silo, step), loss in zip(taken, losses, strict=True):
        silo.attempt(functools.partial(silo.close, step, loss, share * step.tokens))


def _outcome(silo: _Silo) -> TrainingOutcome:
    if silo.error is not None:
        return TrainingOutcome(error=silo.error)
    if silo.moments is not None:
        silo.moments |= moments_of(silo.optimizer, silo.trained)
    adapter = {name: factor.detach().float().cpu().numpy() for name, factor in silo.factors.items()}
    return TrainingOutcome(silo.local_run.totals(silo.seconds), adapter)


# -------------------------------------------------------------------------------- for which models it is right


@while_resident
def can_stack(tuned: TunedModel) -> bool:
    """Whether silos that are trained together come to what each comes to alone: tried once a model.

    Not where the model drops out at random in training, as every pass draws anew. Else rows of two adapters go through
    the model together and apart: the results differ where a model mixes rows, or hands them to adapted layers in
    another order than it received them in.
    """
    if drops_out(tuned.get_base_model(), [tuned]):
        return False
    before, training = lora.take(tuned), tuned.training
    tuned.eval()
    try:
        with torch.no_grad():
            return succeeds(lambda: _stacks(tuned))
    finally:
        lora.put(tuned, before)
        tuned.train(training)


def _stacks(tuned: TunedModel) -> bool:
    batch = _trial(tuned)
    adapters, apart = [], []
    for number, part in enumerate((slice(0, 2), slice(2, 4))):
        adapters.append(factors_like(tuned, _adapter(tuned, number), frozenset()))
        apart.append(plain_logits(tuned, Batch(batch.ids[part], batch.mask[part], batch.predicts[part])))
    with stacked(tuned, adapters):
        return same(plain_logits(tuned, batch), torch.cat(apart))


def _trial(tuned: TunedModel) -> Batch:
    """Four rows of tokens that mean nothing, two a silo, one with padding at its end."""
    causal = tuned.get_base_model()
    vocabulary = causal.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (4, 20), generator=torch.Generator().manual_seed(0)).to(causal.device)
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    return Batch(ids, mask, mask == 1, silos=2)


def _adapter(tuned: TunedModel, number: int) -> AdapterState:
    """An adapter that changes every layer it is on by an amount that can be seen, whatever rank and scaling are."""
    spec = lora.spec_of(tuned)
    adapter, generator = initial_adapter(spec, number), np.random.default_rng(number)
    for module, _, name in spec.pairs():
        (scaling,) = cast(LoraLinear, tuned.get_submodule(module)).scaling.values()
        width, rank = adapter[name].shape
        adapter[name] = generator.normal(0, 0.3 / (scaling * rank**0.5), (width, rank)).astype(np.float32)
    return adapter
