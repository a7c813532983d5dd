"""Where DoRA's magnitudes start: at the norms of the rows of the base's weights, as they are stored.

They are read from the files, layer by layer, and not from a loaded model: so whoever holds the base has the same bits,
in whatever numbers it computes, and a server needs no memory for the whole model. `lora.attach` holds them against what
PEFT computes from the loaded weights, so that a weight that the model changes as it loads is found.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silotune.errors import ModelError
from silotune.model import base, lora, stored
from silotune.model.adapter import NO_NORMS, AdapterState, TensorSpec
from silotune.model.algebra import ordered_sums
from silotune.settings import LoraSettings

AT_A_TIME = 1 << 22
"""Numbers of a weight that are squared at a time."""
INSTEAD = 'Take lora.kind = "lora", or other lora.targets.'


def base_norms(location: str, settings: LoraSettings) -> AdapterState:
    """The norms of the rows of every weight that carries a magnitude, float32 (d_out,) by the magnitude's name.

    Empty if `lora.kind` has no magnitudes. Not to be changed.

    Args:
        location: of the base, as `base.locate` gives it.
        settings: of the adapter.

    Raises:
        ModelError: the base's weights are not here, are stored under other names or as other numbers than the model's
            layers have, or have a row of zeros, which has no direction.
    """
    if settings.kind != "dora":
        return NO_NORMS
    folder = _with_weights(location)
    return _base_norms(location, settings.model_dump_json(), folder, stored.stamps(folder))


@functools.lru_cache(maxsize=1)  # of the same files always the same; reading a large base takes a minute
def _base_norms(location: str, settings: str, folder: Path, stamps: object) -> AdapterState:
    del stamps  # other files at the same place are another base
    tuned = lora.attach(base.load_skeleton(location), LoraSettings.model_validate_json(settings))
    tensors = [tensor for tensor in lora.spec_of(tuned).tensors if tensor.role == "magnitude"]
    with ExitStack() as open_files:
        weights = stored.weights_in(folder, open_files)
        return {tensor.name: _norms(tuned, tensor, weights) for tensor in tensors}


def _with_weights(location: str) -> Path:
    """The folder of a base's weights; those of a hub id are fetched first, as transformers fetches them."""
    try:
        folder = stored.folder_of(location)
        stored.stamps(folder)
    except (OSError, ModelError):
        if Path(location).is_dir():
            raise
        base.load_model(location, base.Placement("cpu", "float32"))
        folder = stored.folder_of(location)
    return folder


def _norms(tuned: Any, tensor: TensorSpec, weights: Mapping[str, Callable[[], Any]]) -> NDArray[np.float32]:
    """The norms of the rows of one stored weight."""
    layer, name = tuned.get_submodule(tensor.module), tensor.module.removeprefix("base_model.model.")
    # A base that was saved without its output layer lacks the prefix of what is below it.
    short = name.removeprefix(f"{tuned.get_base_model().base_model_prefix}.")
    read = weights.get(f"{name}.weight") or weights.get(f"{short}.weight")
    if read is None:
        raise ModelError(f'lora.kind = "dora": the base stores no {name}.weight to start a magnitude at. {INSTEAD}')
    weight = read()
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise ModelError(f'lora.kind = "dora": {name}.weight is stored as {weight.dtype}, which is scaled. {INSTEAD}')
    rows = (weight.T if layer.fan_in_fan_out else weight).float().numpy()
    if rows.shape != (layer.out_features, layer.in_features):
        raise ModelError(f'lora.kind = "dora": {name}.weight is stored with shape {tuple(weight.shape)}. {INSTEAD}')
    norms = row_norms(rows)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ModelError(f'lora.kind = "dora": {name}.weight has a row without a direction (zeros). {INSTEAD}')
    norms.setflags(write=False)
    return norms


def row_norms(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Euclidean norms of the rows of (rows, n), rounded to float32 once, to the same bits on every machine."""
    norms = np.empty(len(matrix), np.float32)
    step = max(1, AT_A_TIME // matrix.shape[1])
    for start in range(0, len(matrix), step):
        piece = matrix[start : start + step].astype(np.float64)
        norms[start : start + step] = np.sqrt(ordered_sums(piece * piece))
    return norms
