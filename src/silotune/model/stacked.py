"""Several adapters on one base at once: of a batch's rows, each part goes through an adapter of its own.

For the rows x_k of adapter k, a layer gives x_k W^T + s (x_k A_k^T) B_k^T. The first product is one for all rows; the
other two are products of stacks, (k, rows x tokens, width) with (k, width, r) and then (k, r, width). DoRA has no such
form: the norms of W + s B_k A_k are another matrix for each adapter.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from silotune.model import lora
from silotune.model.adapter import AdapterState, tensor_name
from silotune.model.precision import in_base_numbers, working_dtype
from silotune.model.protocols import LoraLinear, TunedModel

Factors = Mapping[str, Tensor]
"""An adapter's tensors by the names of PEFT's file."""


def factors_like(tuned: TunedModel, adapter: AdapterState, trainable: Set[str]) -> dict[str, Tensor]:
    """An adapter in tensors of its own, as those of PEFT's model; it takes the place of the one in there.

    Args:
        tuned: PEFT's model.
        adapter: of its names and shapes.
        trainable: names of the tensors that gradients flow into.
    """
    lora.put(tuned, adapter)
    return {
        name: tensor.detach().clone().requires_grad_(name in trainable) for name, tensor in lora.factors(tuned).items()
    }


@contextmanager
def stacked(tuned: TunedModel, adapters: Sequence[Factors]) -> Iterator[None]:
    """While it lasts, these adapters take the place of the one that lies in PEFT's model.

    What goes through the model has rows in as many equal parts, one after another, as there are adapters. Gradients
    flow into those of the adapters' tensors that want one. Dropout of the adapter is not applied.

    Raises:
        ValueError: the adapters have magnitudes.
    """
    if tuned.base_norms:
        raise ValueError("adapters with magnitudes cannot be stacked")
    layers = lora.layers(tuned)
    own = {name: layer.forward for name, layer in layers.items()}
    for name, layer in layers.items():
        pairs = [(adapter[tensor_name(name, "A")], adapter[tensor_name(name, "B")]) for adapter in adapters]
        layer.forward = in_base_numbers(layer, partial(_forward, layer, pairs))
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.forward = own[name]


def _forward(
    layer: LoraLinear, pairs: Sequence[tuple[Tensor, Tensor]], x: Tensor, *args: object, **named: object
) -> Tensor:
    """As PEFT's own layer, (..., width in) to (..., width out): in the base's numbers, products as in `precision`."""
    result: Tensor = layer.base_layer(x, *args, **named)
    down, up = (torch.stack(factors) for factors in zip(*pairs, strict=True))
    (scaling,) = layer.scaling.values()
    if working_dtype(layer) is None:
        x = x.to(down.dtype)
    parts = x.reshape(len(pairs), -1, x.shape[-1])
    product: Tensor = torch.bmm(torch.bmm(parts, down.transpose(1, 2)), up.transpose(1, 2)) * scaling
    total: Tensor = result + product.reshape(result.shape)
    return total.to(result.dtype)
