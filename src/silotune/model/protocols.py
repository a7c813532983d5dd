"""What is used of models: one protocol for all that transformers loads, and what PEFT adds to it.

The libraries' own types say less: there every model is a class of its own, and what a module holds is a tensor or a
module.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from silotune.model.adapter import AdapterState

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Config(Protocol):
    """A configuration of transformers; what only some models have is looked up by name."""

    use_cache: bool
    model_type: str
    vocab_size: int

    def get_text_config(self) -> "Config":
        """That of the language model; raises ValueError where there are several."""

    def to_dict(self) -> dict[str, object]:
        """As config.json has it."""


class GenerationSettings(Protocol):
    """A GenerationConfig of transformers."""

    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    stop_strings: list[str] | None

    def save_pretrained(self, save_directory: Path) -> object:
        """Write it to a folder."""


class CacheLayer(Protocol):
    """What attention keeps in one layer, (rows, heads, tokens, width) each."""

    keys: "Tensor"
    values: "Tensor"


class Cache(Protocol):
    """Keys and values of the tokens that a model has read."""

    layers: Sequence[CacheLayer]

    def reorder_cache(self, beam_idx: "Tensor") -> None:
        """Keep these rows, in this order."""


class Output(Protocol):
    """What a model returns: float (rows, tokens, vocabulary), and a cache if it was asked for one."""

    logits: "Tensor"
    past_key_values: Cache | None


class Hidden(Protocol):
    """What a model without its output layer returns: (rows, tokens, width)."""

    last_hidden_state: "Tensor"


class Decoder(Protocol):
    """A model without its output layer."""

    def __call__(self, **inputs: object) -> Hidden:
        """Last hidden states."""


class Model(Protocol):
    """A causal language model of transformers."""

    config: Config
    generation_config: GenerationSettings
    training: bool
    base_model_prefix: str
    """The attribute that is the `Decoder`."""
    _is_stateful: bool
    """Whether it keeps a state that is no cache of keys and values."""
    forward: Callable[..., object]

    @property
    def device(self) -> "torch.device":
        """Where it computes."""

    def __call__(self, **inputs: object) -> Output:
        """Logits; which inputs it takes, the signature of its `forward` says."""

    def eval(self) -> Self:
        """Switch dropout off."""

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on, or off."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Have gradients flow into its parameters, or not."""

    def parameters(self) -> "Iterator[nn.Parameter]":
        """All of them."""

    def named_parameters(self) -> "Iterator[tuple[str, nn.Parameter]]":
        """All of them, by full name."""

    def modules(self) -> "Iterator[nn.Module]":
        """All of them, itself too."""

    def named_modules(self) -> "Iterator[tuple[str, nn.Module]]":
        """All of them, by full name; its own is empty."""

    def get_submodule(self, target: str) -> "nn.Module":
        """A module by its full name."""

    def get_input_embeddings(self) -> "nn.Embedding":
        """The layer from tokens to vectors."""

    def get_output_embeddings(self) -> "nn.Linear":
        """The layer from vectors to logits."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write it to a folder."""


class TunedModel(Model, Protocol):
    """PEFT's model: one with an adapter on it."""

    base_norms: AdapterState
    """What its magnitudes are relative to (`lora.attach`)."""

    def get_base_model(self) -> Model:
        """The model that carries the adapter, whose layers are PEFT's now."""

    def disable_adapter(self) -> AbstractContextManager[None]:
        """While it lasts, the model is the base alone."""

    def merge_and_unload(self, *, safe_merge: bool) -> Model:
        """Add the adapter into the weights, in place."""


class LoraLinear(Protocol):
    """PEFT's layer around a linear one."""

    scaling: dict[str, float]
    """By adapter."""
    base_layer: "nn.Linear"
    forward: "Callable[..., Tensor]"
    cast_input_dtype_enabled: bool
    """Whether its input is brought to the factors' numbers."""
    lora_variant: Mapping[str, object]
    """By adapter, what makes it another than plain LoRA."""
