"""Whether two models are the same: their logits on random sequences, which are the same on every machine."""

from typing import TYPE_CHECKING

from silotune.model.protocols import Model
from silotune.model.targets import longest_input

if TYPE_CHECKING:
    from torch import Tensor

SEQUENCES, TOKENS = 4, 48
"""How many sequences there are, and their length."""


def logits(model: Model) -> "Tensor":
    """A model's logits on the sequences: float32 (SEQUENCES, length, vocabulary).

    Args:
        model: of transformers, not yet or no longer PEFT's.
    """
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    length = min(TOKENS, longest_input(model) or TOKENS)
    ids = torch.randint(vocabulary, (SEQUENCES, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(input_ids=ids).logits.float()


def largest_difference(one: "Tensor", other: "Tensor") -> float:
    """The largest difference of any logit; infinite where the shapes differ or a number is none."""
    import torch

    if one.shape != other.shape or not bool(torch.isfinite(one - other).all()):
        return float("inf")
    return float((one - other).abs().max())
