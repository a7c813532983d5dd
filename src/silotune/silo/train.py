"""A silo trains: in a round of the federation, or alone."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from silotune import algorithms
from silotune.algorithms.interface import Arrays, LocalResult
from silotune.data.seeds import derive
from silotune.data.silos.batches import plan_round
from silotune.data.silos.sources import SiloConfig
from silotune.errors import InputError
from silotune.model.adapter import AdapterState, initial_adapter
from silotune.silo.memory import Remembered
from silotune.silo.outbound import written
from silotune.silo.start import MOMENTS, Start, begin, moments_in
from silotune.silo.work import Work, memory_of, prepare, require_losses, require_rows
from silotune.wire import codecs
from silotune.wire.envelope import Envelope, Scalar
from silotune.wire.profile import Alone

if TYPE_CHECKING:  # it loads torch
    from silotune.training.local_run import TrainingTask, TrainingTotals

    Trained = tuple[TrainingTotals, AdapterState, Remembered | None]
    """Totals, adapter and moments."""


def train(request: Envelope, silo: SiloConfig) -> Envelope:
    """Train on the silo's rows from the adapter that the server sent; the update is the answer.

    Raises:
        InputError: the round, the base, the rows or what the silo remembers cannot be used.
        AdmissionError: what the server sent is not of the job's names and shapes.
        DivergedError: the loss is not finite.
    """
    work, start = ready(request, silo)
    return finished(work, start, *_trained(work, start))


def ready(request: Envelope, silo: SiloConfig) -> tuple[Work, Start]:
    """Return what a silo is to do in a round and what it starts from.

    Raises:
        InputError, AdmissionError: as `train`.
    """
    work = prepare(request, silo)
    if not 1 <= work.round <= work.job.training.rounds:
        raise InputError(f"the server asks for round {work.round}; the run has {work.job.training.rounds}")
    if silo.min_rows or silo.min_steps:
        plan = plan_round(work.job.training, work.corpus.train.lengths, work.job.seed, silo.files.name, work.round)
        chosen = [example for step in plan for examples in step for example in examples]
        require_rows(len(np.unique(work.corpus.train.row_of[chosen])), "a round would train on", silo)
        if len(plan) < silo.min_steps:
            raise InputError(f"a round would have {len(plan)} steps, and this silo takes at least {silo.min_steps}")
    return work, begin(request, work)


def finished(
    work: Work, start: Start, totals: "TrainingTotals", after: AdapterState, moments: Remembered | None
) -> Envelope:
    """Return the update of a silo that has trained, and keep what it must remember.

    Args:
        work: that was to be done.
        start: that it began with.
        totals: of the training.
        after: the adapter that came of it.
        moments: that the optimizer has come to; None if they are not kept.
    """
    memory, before = memory_of(work), start.received.adapter
    update = {name: after[name] - before[name] for name in start.trainable}
    changed, own = _controls(work, start, LocalResult(start.received.common, update, totals.rates))
    draw = np.random.Generator(np.random.Philox(derive(work.job.seed, "codec", work.silo.files.name, work.round)))
    leaving = written({**update, **changed}, codecs.find(work.job.codec), draw, start.remembered)
    if memory is not None:
        kept = {MOMENTS + name: value for name, value in (moments or {}).items()} | own
        sound = leaving.usable and all(np.isfinite(value).all() for value in kept.values())
        memory.keep(work.round, {**leaving.remembered, **(kept if sound else {})})
    fields: dict[str, Scalar] = {
        "steps": totals.steps,
        "loss": totals.loss if work.silo.losses else 0.0,
        "tokens": totals.tokens,
        "loss_tokens": totals.loss_tokens,
        "examples": len(work.corpus.train),
        "seconds": totals.seconds,
        "codec_error": leaving.codec_error,
    }
    return Envelope("up", "train", fields, leaving.array, leaving.manifest)


def _controls(work: Work, start: Start, result: LocalResult) -> tuple[Arrays, Remembered]:
    """By how much the silo's control variates have changed, and what they are now; nothing where there are none."""
    method = algorithms.find(work.job.algorithm)
    if not method.control:
        return {}, {}
    changed, before = method.control.change(result), start.remembered
    own = {name: before[name] + value if name in before else value for name, value in changed.items()}
    return changed, own


def _trained(work: Work, start: Start) -> "Trained":
    """Train on the silo's rows: totals, and what adapter and moments have become."""
    from silotune.training.loop import train_round

    task = _task(work, start.received.adapter, start.trainable, start.moments, start.drift)
    totals, adapter = train_round(work.tuner, work.forward_plan, task, work.job.training, work.job.seed, work.round)
    return totals, adapter, start.moments


def _task(
    work: Work, adapter: AdapterState, trainable: frozenset[str], moments: Remembered | None, drift: Arrays
) -> "TrainingTask":
    from silotune.training.local_run import TrainingTask

    return TrainingTask(work.silo.files.name, work.corpus.train, adapter, trainable,
                        lambda step: work.progress(**asdict(step)), moments, drift)  # fmt: skip


def alone(request: Envelope, silo: SiloConfig) -> Envelope:
    """Train the whole adapter as a federation of this silo would: each round goes on where the last one ended.

    Whatever the method: it is what the silo could do without the others.
    """
    from silotune.training.evaluation import evaluate
    from silotune.training.loop import train_alone

    began = time.monotonic()
    work, rounds = prepare(request, silo), int(request.fields["rounds"])
    if not 1 <= rounds <= work.job.training.rounds:
        raise InputError(f"the server asks for {rounds} rounds alone; the run has {work.job.training.rounds}")
    require_losses(work)
    spec, seed = work.tuner.spec, work.job.seed
    training = work.job.training.model_copy(update={"rounds": rounds})
    task = _task(work, initial_adapter(spec, derive(seed, "adapter")), spec.names, moments_in(work, {}), {})
    trained = [totals for _, totals, _ in train_alone(work.tuner, work.forward_plan, task, training, seed)]
    steps, tokens, loss_tokens = (
        sum(getattr(totals, count) for totals in trained) for count in ("steps", "tokens", "loss_tokens")
    )
    score = evaluate(work.tuner, work.forward_plan, work.corpus.test, lambda: work.progress())
    told = Alone(score.rows, score.tokens, score.loss, score.correct, steps, tokens, loss_tokens,
                 time.monotonic() - began)  # fmt: skip
    return Envelope("up", "alone", asdict(told))
