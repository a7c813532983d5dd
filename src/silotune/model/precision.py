"""Mixed precision: on a GPU the factors' products are computed in the base's bfloat16, and all that lasts is float32.

A base in bfloat16 carries float32 factors, so that no step of the optimizer is rounded away. PEFT would bring a layer's
input up to the factors' float32, where the products miss the tensor cores. Here each adapted layer computes under
torch's autocast (Micikevicius et al., "Mixed Precision Training", ICLR 2018, arXiv 1710.03740): the factors are rounded
for a product, their gradients come back in float32, and factors, moments and what travels stay float32. bfloat16 has
the range of float32, so no loss is scaled. A base in float32, and every base on a CPU, is left as it is; so is DoRA,
whose norms of whole rows are not to be rounded.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from silotune.model import lora
from silotune.model.protocols import LoraLinear, TunedModel

if TYPE_CHECKING:  # loading torch takes seconds, and most commands do without
    import torch
    from torch import Tensor

DEVICES = {"cuda"}
"""Types of devices that multiply faster in bfloat16 than in float32."""


def mix(tuned: TunedModel) -> None:
    """Have the adapted layers of PEFT's model compute in the base's numbers from now on, where that is faster."""
    for layer in lora.layers(tuned).values():
        if working_dtype(layer) is not None:
            layer.cast_input_dtype_enabled = False  # no float32 copy of an input that is multiplied in bfloat16
            layer.forward = in_base_numbers(layer, layer.forward)


def working_dtype(layer: LoraLinear) -> "torch.dtype | None":
    """The numbers in which a layer's products with its factors are computed; None: in the factors' own."""
    import torch

    weight = layer.base_layer.weight
    if weight.device.type not in DEVICES or weight.dtype == torch.float32 or layer.lora_variant:
        return None
    return torch.bfloat16  # a base in four bits computes in it too


def in_base_numbers(layer: LoraLinear, forward: "Callable[..., Tensor]") -> "Callable[..., Tensor]":
    """A layer's forward pass with its products in the numbers that `working_dtype` says."""
    import torch

    dtype = working_dtype(layer)
    if dtype is None:
        return forward
    computed: Callable[..., Tensor] = torch.autocast(layer.base_layer.weight.device.type, dtype)(forward)
    return computed
