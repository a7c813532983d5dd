"""What keeps a silo's steps near the others': terms that know where its round began, or which way all silos go.

A correction acts at two places of a step: on the gradient before it is clipped, and on the tensors after the optimizer
has moved them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def nothing(_: Sequence[Tensor], rate: float = 0.0) -> None:
    """Changes nothing, whatever the rate."""
    del rate


@dataclass(frozen=True)
class Correction:
    """Both places, each a function that works in place on the tensors that are trained."""

    gradient: Callable[[Sequence[Tensor]], None] = nothing
    """Adds to their `.grad`."""
    step: Callable[[Sequence[Tensor], float], None] = nothing
    """Moves them, given the step's learning rate."""


def correction(mu: float, drift: Mapping[str, NDArray[np.float32]], tensors: Mapping[str, Tensor]) -> Correction:
    """The corrections that a round asks for.

    Args:
        mu: of FedProx's term; 0: none.
        drift: by name, of each tensor's own shape, what to take off after each step, per unit of learning rate.
        tensors: that are trained, by name, as they were received.
    """
    return Correction(proximal(mu, list(tensors.values())), against(drift, tensors))


def proximal(mu: float, tensors: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], None]:
    """FedProx: the gradient of mu / 2 ||theta - theta_t||^2, which holds a silo near the adapter that it received.

    Tian Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv 1812.06127. It is 0 at a
    round's first step. With mu = 0 nothing is added, and training is plain to the bit.

    Args:
        mu: of the term.
        tensors: as they are received, theta_t.
    """
    if mu == 0:
        return nothing
    received = [tensor.detach().clone() for tensor in tensors]

    def correct(now: Sequence[Tensor]) -> None:
        for tensor, start in zip(now, received, strict=True):
            if tensor.grad is not None:
                tensor.grad.add_(tensor.detach() - start, alpha=mu)

    return correct


def against(
    drift: Mapping[str, NDArray[np.float32]], tensors: Mapping[str, Tensor]
) -> Callable[[Sequence[Tensor], float], None]:
    """theta -= rate * drift after the optimizer's step, which no gradient scaling of its own distorts.

    A term that is added to the gradient would be divided by Adam's root of second moments; so SCAFFOLD's (`algorithms.
    scaffold`) comes here. Without drift nothing is moved, and training is plain to the bit.

    Args:
        drift: by name, for all of the tensors or none.
        tensors: by name, in the order in which they are moved.
    """
    if not drift:
        return nothing
    moved = [torch.tensor(drift[name], device=tensor.device) for name, tensor in tensors.items()]

    def correct(now: Sequence[Tensor], rate: float) -> None:
        with torch.no_grad():
            for tensor, direction in zip(now, moved, strict=True):
                tensor.sub_(direction, alpha=rate)

    return correct
