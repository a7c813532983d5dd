"""The resident model: one base with LoRA slots, loaded once in a process and kept for its life."""

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.errors import ModelError
from silotune.model import base as base_model
from silotune.model import lora, precision
from silotune.model.adapter import AdapterSpec, AdapterState
from silotune.model.magnitudes import base_norms
from silotune.model.protocols import TunedModel
from silotune.model.stored import describe
from silotune.settings import NOT_NF4, LoraSettings


@dataclass(frozen=True)
class Tuner:
    """A base model with an adapter that is exchanged by copying."""

    model: TunedModel
    """PEFT's model."""
    tokenizer: Tokenizer
    spec: AdapterSpec
    norms: AdapterState
    """The norms of the base's rows, by the names of the magnitudes (`magnitudes.base_norms`)."""
    fingerprint: str
    """Fingerprint of the stored base, independent of the dtype it is computed in."""
    base_bytes: int
    """Bytes of the base's weights as they are stored."""
    device: str


def tuner(base: str, settings: LoraSettings, placement: base_model.Placement) -> Tuner:
    """Load a base model with LoRA on it, or return the one that this process already holds.

    Another one that it holds is let go before, so that memory never has to bear two.

    Raises:
        ModelError: the base cannot be had, or the settings do not fit it.
    """
    wanted = base, settings.model_dump_json(), placement
    if wanted not in _RESIDENT:
        release()
        _RESIDENT[wanted] = _load(base, settings, placement)
    return _RESIDENT[wanted]


_RESIDENT: dict[tuple[str, str, base_model.Placement], Tuner] = {}
"""The one that this process holds, if any."""
_FOUND_OUT: list[Callable[[], None]] = []
"""What forgets all that was found out about it."""

Given = ParamSpec("Given")
Found = TypeVar("Found")


def while_resident(find_out: Callable[Given, Found]) -> Callable[Given, Found]:
    """Have a function's last result remembered for as long as the model that it was given is resident."""
    remembered = functools.lru_cache(maxsize=1)(find_out)
    _FOUND_OUT.append(remembered.cache_clear)
    return remembered  # type: ignore[return-value]


def release() -> None:
    """Let the resident model go, and give its memory back as far as nobody else holds it."""
    if not _RESIDENT:
        return
    _RESIDENT.clear()
    for forget in _FOUND_OUT:
        forget()
    gc.collect()  # a model's modules and hooks refer to each other in circles
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load(base: str, settings: LoraSettings, placement: base_model.Placement) -> Tuner:
    if settings.kind == "dora" and placement.dtype == "nf4":
        raise ModelError(f'model.dtype = "nf4": {NOT_NF4}.')
    location = base_model.locate(base)
    tokenizer = base_model.load_tokenizer(location)
    model = base_model.load_model(location, placement)
    stored, norms = describe(location, tokenizer), base_norms(location, settings)
    tuned = lora.attach(model, settings, norms)
    precision.mix(tuned)
    return Tuner(tuned, tokenizer, lora.spec_of(tuned), norms, stored.fingerprint, stored.bytes, placement.device)
