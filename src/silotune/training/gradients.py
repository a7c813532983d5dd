"""From the rows of a step to the gradient of its loss.

An objective says what a batch costs; a gradient, how an objective becomes the `.grad` of what is trained. Clipping each
row's part and adding noise is another gradient; preferring one answer to another is another objective.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from silotune.data.silos.batches import Batch
from silotune.model.tuner import Tuner
from silotune.training.forward import ForwardPlan, losses

Objective = Callable[[Batch], Tensor]
"""Summed losses (silos,), in nats, of a batch with rows of so many silos; gradients are recorded."""

Gradient = Callable[[Objective, Sequence[Batch], Sequence[int]], list[float]]
"""(objective, the batches of a step, each silo's loss tokens in them) -> each silo's summed loss, in nats.

Adds to `.grad` of what is trained.
"""


def cross_entropy(tuner: Tuner, forward_plan: ForwardPlan) -> Objective:
    """The cross-entropy of the tokens that carry loss: supervised fine-tuning."""
    return lambda batch: losses(tuner.model, batch, forward_plan)


def of_means(objective: Objective, batches: Sequence[Batch], counts: Sequence[int]) -> list[float]:
    """The gradient of the sum, over silos, of the mean loss over a silo's loss tokens in this step."""
    totals = [0.0] * len(counts)
    for batch in batches:
        summed = objective(batch)
        divisors = torch.tensor([max(count, 1) for count in counts], device=summed.device)
        (summed / divisors).sum().backward()  # type: ignore[no-untyped-call]
        totals = [total + loss for total, loss in zip(totals, summed.tolist(), strict=True)]
    return totals
