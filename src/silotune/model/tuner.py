"""The resident model: one base with LoRA slots, loaded once in a process and kept for its life."""

import functools
from dataclasses import dataclass
from typing import Any

from silotune.model import base as base_model
from silotune.model import lora
from silotune.model.adapter import AdapterSpec
from silotune.model.stored import describe
from silotune.settings import LoraSettings


@dataclass(frozen=True)
class Tuner:
    """A base model with LoRA factors that are exchanged by copying."""

    model: Any
    """PEFT's model."""
    tokenizer: Any
    spec: AdapterSpec
    fingerprint: str
    """Of the base as it is stored; the same in whatever numbers it is computed with."""
    base_bytes: int
    """Of the base's weights as they are stored."""
    device: str


def tuner(base: str, settings: LoraSettings, placement: base_model.Placement) -> Tuner:
    """Load a base model with LoRA on it, or return the one that this process already holds.

    Raises:
        ModelError: the base cannot be had, or the settings do not fit it.
    """
    return _load(base, settings.model_dump_json(), placement)


@functools.lru_cache(maxsize=1)
def _load(base: str, settings: str, placement: base_model.Placement) -> Tuner:
    location = base_model.locate(base)
    tokenizer = base_model.load_tokenizer(location)
    model = base_model.load_model(location, placement)
    stored = describe(location, tokenizer)
    tuned = lora.attach(model, LoraSettings.model_validate_json(settings))
    return Tuner(tuned, tokenizer, lora.spec_of(tuned), stored.fingerprint, stored.bytes, placement.device)
