"""A silo's part of a round: so many steps of AdamW on its own rows, from the adapter that it received."""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from silotune.data.seeds import derive
from silotune.data.silos.batches import collate
from silotune.model import lora
from silotune.model.adapter import AdapterState
from silotune.model.tuner import Tuner
from silotune.settings import TrainingSettings
from silotune.training.corrections import correction
from silotune.training.forward import ForwardPlan
from silotune.training.gradients import cross_entropy, of_means
from silotune.training.local_run import LocalRun, TrainingTask, TrainingTotals
from silotune.training.optimizer import advance, make_optimizer, moments_of, resume


def train_round(
    tuner: Tuner, forward_plan: ForwardPlan, task: TrainingTask, settings: TrainingSettings, seed: int, round_: int
) -> tuple[TrainingTotals, AdapterState]:
    """Train a silo's adapter.

    On a CPU, same inputs and same number of threads give the same bits.

    Args:
        tuner: the resident model; what is trained stays in it.
        forward_plan: the short ways through it (`forward.forward_plan_of`).
        task: the silo, its rows, and what it starts from.
        settings: of the training.
        seed: of the run.
        round_: from 1.

    Returns:
        What the round did, and the adapter that came of it.

    Raises:
        DivergedError: the loss is not finite.
    """
    model, pad = tuner.model, int(tuner.tokenizer.pad_token_id or 0)
    local_run = LocalRun(task, settings, seed, round_)
    objective, gradient = cross_entropy(tuner, forward_plan), of_means
    torch.manual_seed(derive(seed, "dropout", task.silo, round_))
    lora.put(model, task.adapter)
    model.train()
    began = time.monotonic()
    with lora.trainable(model, task.trainable) as tensors:
        optimizer = make_optimizer(tensors.values(), settings)
        correct = correction(settings.proximal, task.drift, tensors)
        resume(optimizer, tensors, task.moments or {})
        try:
            for step in local_run.steps():
                optimizer.zero_grad(set_to_none=True)
                batches = [collate(rows, pad, tuner.device) for rows in step.passes]
                (loss,) = gradient(objective, batches, [step.loss_tokens])
                advance(optimizer, correct, step.rate, settings.clip)
                local_run.done(step, loss, time.monotonic() - began)
            if task.moments is not None:
                task.moments.update(moments_of(optimizer, tensors))
        finally:
            model.eval()
            optimizer.zero_grad(set_to_none=True)
    return local_run.totals(time.monotonic() - began), lora.take(model)


def train_alone(
    tuner: Tuner, forward_plan: ForwardPlan, task: TrainingTask, settings: TrainingSettings, seed: int, done: int = 0
) -> Iterator[tuple[int, TrainingTotals, AdapterState]]:
    """Train plainly, each round from where the last one ended: what whoever holds these rows can do without others.

    Args:
        tuner, forward_plan, seed: as for `train_round`.
        task: the rows, and the adapter after the rounds that are done; its moments go on from round to round.
        settings: of the training; its proximal term is left out.
        done: rounds that lie behind.

    Yields:
        For each round its number, what it did, and the adapter that came of it.

    Raises:
        DivergedError: the loss is not finite.
    """
    plain = settings.model_copy(update={"proximal": 0.0})
    for round_ in range(done + 1, settings.rounds + 1):
        totals, adapter = train_round(tuner, forward_plan, task, plain, seed, round_)
        yield round_, totals, adapter
        task = replace(task, adapter=adapter)
