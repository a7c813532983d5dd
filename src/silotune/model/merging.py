"""Base and adapter as one plain model, which any program that reads the base reads too."""

import gc
from dataclasses import dataclass
from pathlib import Path

from silotune.errors import ModelError
from silotune.model import base, lora, probing
from silotune.model.adapter import AdapterState
from silotune.model.magnitudes import base_norms
from silotune.model.protocols import GenerationSettings, Model
from silotune.model.stopping import stopping
from silotune.settings import LoraSettings

TOLERANCE = 1e-3
"""Logits may differ by this share of the largest one at most,"""
OF_EFFECT = 0.05
"""and by this share of what the adapter changes,"""
ROUNDING = 1e-5
"""where that is more than rounding: this share of the largest logit."""
HERE = base.Placement("cpu", "float32")
"""How models are compared."""


@dataclass(frozen=True)
class Checked:
    """How near a merged model is to base and adapter."""

    difference: float
    """Largest difference of any logit."""
    largest: float
    """Largest logit, in absolute value."""
    effect: float
    """Largest change of any logit that the adapter makes."""

    @property
    def limit(self) -> float:
        """The difference that is allowed."""
        return max(ROUNDING * self.largest, min(TOLERANCE * self.largest, OF_EFFECT * self.effect))


def write_merged(location: str, settings: LoraSettings, adapter: AdapterState, folder: Path) -> Checked:
    """Write base and adapter as one model in float32, with the base's generation settings, and read it again.

    Args:
        location: of the base, as `base.locate` gives it.
        settings: of the adapter.
        adapter: as `lora.load` checks it.
        folder: exists already.

    Returns:
        How near the model that transformers loads from `folder` is to base and adapter.

    Raises:
        ModelError: the logits are not the same.
    """
    tuned = lora.attach(base.load_model(location, HERE), settings, base_norms(location, settings))
    lora.put(tuned, adapter)
    expected = probing.logits(tuned.get_base_model())
    with tuned.disable_adapter():
        effect = probing.largest_difference(probing.logits(tuned.get_base_model()), expected)
    settings_beside = stopping(tuned.generation_config, base.load_tokenizer(location))
    _save(lora.merged(tuned), settings_beside, folder)
    del tuned
    gc.collect()  # one model in memory, not two
    difference = probing.largest_difference(probing.logits(base.load_model(str(folder), HERE)), expected)
    checked = Checked(difference, float(expected.abs().max()), effect)
    if not checked.difference <= checked.limit:
        raise ModelError(
            f"the merged model's logits differ by {difference:.2g} from those of base and adapter; {checked.limit:.2g} "
            "is allowed. It is not kept; use the adapter as it is."
        )
    return checked


def _save(model: Model, settings: GenerationSettings, folder: Path) -> None:
    model.config.use_cache = True  # off for training
    model.generation_config = settings
    with base.without_bars():
        model.save_pretrained(folder)
