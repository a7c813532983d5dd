"""The optimizer of a silo, AdamW, and what it has come to as arrays that can be kept."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import AdamW

from silotune.settings import TrainingSettings
from silotune.training.corrections import Correction


def make_optimizer(parameters: Iterable[Tensor], settings: TrainingSettings) -> AdamW:
    """AdamW over LoRA factors; its rate is set step by step."""
    return AdamW(parameters, lr=0.0, weight_decay=settings.weight_decay, foreach=True)


Moments = dict[str, NDArray[np.float32]]
"""What AdamW has come to: `m/`, `v/` and `t/` before each tensor's name, of the tensor's own shape (`t/`: (1,))."""


def resume(optimizer: AdamW, tensors: Mapping[str, Tensor], moments: Moments) -> None:
    """Have a new AdamW start where another one ended; a tensor of which there is nothing starts anew."""
    for name, tensor in tensors.items():
        if f"m/{name}" in moments:
            optimizer.state[tensor] = {
                "step": torch.tensor(float(moments[f"t/{name}"][0])),
                "exp_avg": torch.tensor(moments[f"m/{name}"], device=tensor.device),
                "exp_avg_sq": torch.tensor(moments[f"v/{name}"], device=tensor.device),
            }


def moments_of(optimizer: AdamW, tensors: Mapping[str, Tensor]) -> Moments:
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


def advance(optimizer: AdamW, correct: Correction, rate: float, clip: float) -> None:
    """From gradients to new numbers: correct, clip all of the optimizer's tensors together, step, correct.

    Args:
        optimizer: over tensors that have their gradients.
        correct: of the round.
        rate: learning rate of this step.
        clip: largest norm of the gradient.
    """
    (group,) = optimizer.param_groups
    group["lr"] = rate
    correct.gradient(group["params"])
    torch.nn.utils.clip_grad_norm_(group["params"], clip, foreach=True)
    optimizer.step()
    correct.step(group["params"], rate)
