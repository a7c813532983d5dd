"""What a silo's update becomes before it leaves: written in the run's codec, with what the last ones lost."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from silotune.model.adapter import AdapterSpec, AdapterState, unflatten
from silotune.silo.memory import Remembered
from silotune.wire import manifest
from silotune.wire.codecs.interface import Codec, Draw
from silotune.wire.manifest import Manifest

RESIDUAL = "residual/"
"""Before the names of tensors, in a silo's memory: what rounding has taken of its updates so far."""


@dataclass(frozen=True)
class Outgoing:
    """An update as it leaves the silo, and what stays."""

    array: NDArray[np.generic]
    manifest: Manifest
    remembered: Remembered
    codec_error: float
    """||sent - meant|| / ||meant||, where meant is the update with what the silo still owed; 0 if that is 0."""
    usable: bool
    """Whether the server can take it: it is finite, and within the bound of an update."""


def written(update: AdapterState, codec: Codec, draw: Draw, remembered: Remembered) -> Outgoing:
    """Write an update in a codec; with error feedback, together with the residual of earlier rounds.

    Args:
        update: of the tensors that the round trains, and what a method sends beside it.
        codec: of the run.
        draw: what rounding is drawn with.
        remembered: the silo's memory before the round. Residuals of tensors that are not in `update` stay in it, and
            all of it stays as it is where the server will refuse the update.
    """
    owed = {name: remembered[RESIDUAL + name] for name in update if codec.feedback and RESIDUAL + name in remembered}
    meant = {name: value + owed[name] if name in owed else value for name, value in update.items()}
    array, described = manifest.pack(meant, codec, draw)
    spec = AdapterSpec.of(meant)
    sent = unflatten(codec.decode(array, spec.size), spec)
    # NaN compares false as well.
    usable = all(bool((np.abs(value) <= manifest.MOST_UPDATE).all()) for value in sent.values())
    if codec.lossless or not usable:
        return Outgoing(array, described, remembered, 0.0, usable)
    lost = {name: value - sent[name] for name, value in meant.items()}
    whole = _norm(meant)
    kept = {RESIDUAL + name: value for name, value in lost.items()} if codec.feedback else {}
    return Outgoing(array, described, {**remembered, **kept}, _norm(lost) / whole if whole else 0.0, usable)


def _norm(arrays: AdapterState) -> float:
    return float(np.sqrt(sum(float(np.sum(np.square(value, dtype=np.float64))) for value in arrays.values())))
