"""What is added to a silo's gradient before it is clipped: terms that know where its round began."""

from collections.abc import Callable, Sequence

from torch import Tensor

Correction = Callable[[Sequence[Tensor]], None]
"""Adds to `.grad` of the tensors that are trained, in place; called at each optimizer step."""


def plain(_: Sequence[Tensor]) -> None:
    """Nothing."""


def proximal(mu: float, tensors: Sequence[Tensor]) -> Correction:
    """FedProx: the gradient of mu / 2 ||theta - theta_t||^2, which holds a silo near the adapter that it received.

    Tian Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv 1812.06127. It is 0 at a
    round's first step. With mu = 0 nothing is added, and training is plain to the bit.

    Args:
        mu: of the term.
        tensors: as they are received, theta_t.
    """
    if mu == 0:
        return plain
    received = [tensor.detach().clone() for tensor in tensors]

    def correct(now: Sequence[Tensor]) -> None:
        for tensor, start in zip(now, received, strict=True):
            if tensor.grad is not None:
                tensor.grad.add_(tensor.detach() - start, alpha=mu)

    return correct
