"""A silo's part of a round: so many steps of AdamW on its own rows, from the adapter that it received."""

import time

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
