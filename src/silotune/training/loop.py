"""A silo's part of a round: so many steps of AdamW on its own rows, from the adapter that it received."""

import time
from collections.abc import Callable, Mapping, Set

import numpy as np
import torch
from numpy.typing import NDArray

from silotune.data.seeds import derive
from silotune.data.silos.batches import collate
from silotune.data.silos.joined import Examples
from silotune.model import lora
from silotune.model.tuner import Tuner
from silotune.settings import TrainingSettings
from silotune.training.corrections import correction
from silotune.training.forward import ForwardPlan
from silotune.training.gradients import cross_entropy, of_means
from silotune.training.local_run import LocalRun, StepReport, TrainingTotals
from silotune.training.optimizer import Moments, advance, make_optimizer, moments_of, resume

NO_DRIFT: Mapping[str, NDArray[np.float32]] = {}
"""The drift of a method that does not correct any."""


def train_round(
    tuner: Tuner,
    forward_plan: ForwardPlan,
    examples: Examples,
    settings: TrainingSettings,
    seed: int,
    silo: str,
    round_: int,
    report: Callable[[StepReport], None] = lambda _: None,
    trainable: Set[str] | None = None,
    moments: Moments | None = None,
    drift: Mapping[str, NDArray[np.float32]] = NO_DRIFT,
) -> TrainingTotals:
    """Train the adapter that lies in the model, in place.

    On a CPU, same inputs and same number of threads give the same bits.

    Args:
        tuner: the resident model, with the received adapter in it.
        forward_plan: the short ways through it (`forward.forward_plan_of`).
        examples: the silo's training rows (or those of all, pooled).
        settings: of the training.
        seed: of the run.
        silo: the silo's name, part of every seed.
        round_: from 1.
        report: called after each optimizer step; may raise to stop.
        trainable: names of the adapter's tensors that are trained, the others stay as they are; None: all.
        moments: what the optimizer starts from, and, when the round is done, what it has come to; those of tensors that
            are not trained stay. None: it starts anew, and nothing is kept.
        drift: of each tensor that is trained, what to take off after each step, per unit of learning rate.

    Raises:
        DivergedError: the loss is not finite.
    """
    model, pad = tuner.model, int(tuner.tokenizer.pad_token_id or 0)
    local_run = LocalRun(examples, settings, seed, silo, round_, report)
    objective, gradient = cross_entropy(tuner, forward_plan), of_means
    torch.manual_seed(derive(seed, "dropout", silo, round_))
    model.train()
    began = time.monotonic()
    with lora.trainable(model, tuner.spec.names if trainable is None else trainable) as tensors:
        optimizer, correct = make_optimizer(tensors.values(), settings), correction(settings.proximal, drift, tensors)
        resume(optimizer, tensors, moments or {})
        try:
            for step in local_run.steps():
                optimizer.zero_grad(set_to_none=True)
                batches = [collate(rows, pad, tuner.device) for rows in step.passes]
                (loss,) = gradient(objective, batches, [step.loss_tokens])
                advance(optimizer, correct, step.rate, settings.clip)
                local_run.done(step, loss, time.monotonic() - began)
            if moments is not None:
                moments |= moments_of(optimizer, tensors)
        finally:
            model.eval()
            optimizer.zero_grad(set_to_none=True)
    return local_run.totals(time.monotonic() - began)
