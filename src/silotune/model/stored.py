"""A base model as it lies on disk: a mark by which silos compare their bases, and its size.

Both are read from the files and not from the loaded model, so they are the same whether a silo computes in float32,
bfloat16 or 4 bits, and however the weights are split over files.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

VALUES = 16
"""Values of each weight that the fingerprint covers."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""Files of weights, in the order in which transformers prefers them. Torch's own format can run code as it is read."""
NOT_THE_MODEL = ("transformers_version", "dtype", "torch_dtype", "use_cache")
"""Keys of config.json that say how a model is loaded or by what it was written, not what it computes."""


@dataclass(frozen=True)
class Stored:
    """What is known of a base from its files."""

    fingerprint: str
    bytes: int
    """Bytes of all its weights as they are stored."""


def describe(location: str, tokenizer: Tokenizer) -> Stored:
    """Read the mark and the size of a base from its files.

    The fingerprint covers the configuration, every weight's name and shape, 16 values of each, the vocabulary and
    the chat template. It tells versions and conversions apart; it is no proof against somebody who forges a model
    on purpose.

    Args:
        location: a folder, or a hub id that was loaded before (its files are in the hub's cache).
        tokenizer: of the base, as `base.load_tokenizer` gives it.

    Raises:
        ModelError: no weights are found, or a file cannot be read.
    """
    folder = folder_of(location)
    digest = hashlib.sha256(json.dumps(_configuration(folder), sort_keys=True).encode())
    size = 0
    with ExitStack() as open_files:
        weights = weights_in(folder, open_files)
        for name in sorted(weights):
            weight = weights[name]()
            size += weight.nbytes
            digest.update(json.dumps([name, list(weight.shape)]).encode() + _sample(weight))
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(str(tokenizer.chat_template).encode())
    return Stored(digest.hexdigest()[:32], size)


def folder_of(location: str) -> Path:
    """The folder of a base's files: the location itself, or where the hub's cache has it."""
    if Path(location).is_dir():
        return Path(location)
    from transformers.utils import cached_file

    return Path(str(cached_file(location, "config.json", local_files_only=True))).parent


def _configuration(folder: Path) -> dict[str, object]:
    """What config.json says of the model; names of places and empty entries left out."""
    configured = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        key: value
        for key, value in configured.items()
        if value is not None and not key.startswith("_") and key not in NOT_THE_MODEL
    }


def weights_in(folder: Path, open_files: ExitStack) -> "dict[str, Callable[[], Tensor]]":
    """Functions that read the weights of a folder, one tensor each, by the names under which they are stored.

    Raises:
        ModelError: no weights are found.
    """
    from safetensors import safe_open

    found: dict[str, Callable[[], Tensor]] = {}
    for path in _files(folder):
        shard = open_files.enter_context(safe_open(path, framework="pt"))
        found |= {name: functools.partial(shard.get_tensor, name) for name in shard.keys()}  # noqa: SIM118
    return found


def stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of each file of weights: what tells them from others that lay there before.

    Raises:
        ModelError: no weights are found.
    """
    found = ((path.name, path.stat()) for path in _files(folder))
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)


def _files(folder: Path) -> list[Path]:
    for name in WEIGHTS:
        path = folder / name
        if path.is_file() and path.suffix == ".json":
            shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / shard for shard in sorted(set(shards))]
        if path.is_file():
            return [path]
    raise ModelError(f"model.base: {folder} holds no weights; expected one of {', '.join(WEIGHTS)}.")


def _sample(weight: "Tensor") -> bytes:
    """Values of a tensor at even distances, as float32; numbers of a byte or less as they are."""
    import torch

    flat = weight.reshape(-1)
    chosen = flat[:: max(1, flat.numel() // VALUES)][:VALUES]
    if chosen.element_size() == 1:
        return bytes(chosen.contiguous().view(torch.uint8).numpy().tobytes())
    return bytes(chosen.float().numpy().tobytes())
