"""The base model: found by name, folder, GGUF file or hub id, loaded frozen, with its tokenizer.

No table of model families: whatever transformers loads as a causal language model, and PEFT can adapt, will do.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from silotune.data.tokenize.chat_template import prepare
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.errors import ModelError
from silotune.model import embedded, gguf
from silotune.model.gguf import in_a_line
from silotune.model.protocols import GenerationSettings, Model
from silotune.model.trial import out_of_memory
from silotune.recipe import looks_like_path

LOCAL = "local"
"""What a job calls a base that lies in a folder or file: every silo names its own place of it."""


@dataclass(frozen=True)
class Placement:
    """Where and in which numbers the frozen weights are computed with."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16", "nf4"]


def place(device: str, dtype: str) -> Placement:
    """Settle `auto`, and refuse what this machine does not have.

    Raises:
        ModelError: CUDA, bfloat16 or 4-bit weights asked for where they cannot be had.
    """
    import torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ModelError('model.device: "cuda" was asked for, but torch sees no CUDA device. Use "cpu" or "auto".')
    on_cuda = cuda and device != "cpu"
    if dtype in ("bfloat16", "nf4") and not on_cuda:
        raise ModelError(
            f'model.dtype: "{dtype}" needs a CUDA device, and silos compute on the CPU here. Use "float32".'
        )
    if dtype == "nf4" and not _has_bitsandbytes():
        raise ModelError('model.dtype: "nf4" needs the gpu extra: pip install "silotune[gpu]".')
    settled = dtype if dtype != "auto" else ("bfloat16" if on_cuda else "float32")
    return Placement("cuda" if on_cuda else "cpu", settled)  # type: ignore[arg-type]


def cores() -> int:
    """Cores that this process may use; containers and `taskset` leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_bitsandbytes() -> bool:
    import importlib.util

    return importlib.util.find_spec("bitsandbytes") is not None


def public_name(base: str) -> str:
    """What a job may say of a base: its embedded name or hub id, never a path."""
    return LOCAL if looks_like_path(base) else base


def published_name(base: str) -> str:
    """What an adapter and its card call a base: a hub id where there is one, else the name of its folder or file."""
    if base == embedded.NAME:
        return embedded.HUB_ID
    return Path(base).name if looks_like_path(base) else base


def locate(base: str) -> str:
    """Return what transformers can load: a folder, or a hub id as it stands.

    Fetches the embedded model, and converts a GGUF file, on first use.

    Raises:
        ModelError: a path that is not there, or not a model.
    """
    if base == embedded.NAME:
        return str(embedded.embedded(base))
    if not looks_like_path(base):
        return base
    path = Path(base).expanduser()
    if path.is_file():
        return str(gguf.converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model.base: {path} holds no config.json, so it is no model in Hugging Face format.")
        if (path / "adapter_config.json").is_file():  # transformers would load that adapter, and perhaps another base
            raise ModelError(
                f"model.base: {path} holds an adapter beside a model. Take the adapter's files out of it, or merge "
                "the two."
            )
        return str(path)
    raise ModelError(f"model.base: {base}: no such file or folder.")


def load_tokenizer(location: str) -> Tokenizer:
    """Load the tokenizer, with a chat template that can be trained with (`data.chat_template.prepare`).

    A missing pad token needs no new token and no larger embedding: padding is masked, so any id serves.
    """
    tokenizer: Tokenizer = _load("AutoTokenizer", location)
    if not tokenizer.eos_token:
        raise ModelError(f"model.base: the tokenizer of {location} has no end-of-sequence token to end an answer with.")
    prepare(tokenizer)
    return tokenizer


def load_model(location: str, placement: Placement) -> Model:
    """Load the frozen base model in evaluation mode.

    Raises:
        ModelError: not a causal language model, or not to be had from here.
    """
    import torch

    options: dict[str, object] = {"dtype": torch.float32 if placement.dtype == "float32" else torch.bfloat16}
    if placement.dtype == "nf4":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    if placement.device == "cuda":
        options["device_map"] = {"": torch.cuda.current_device()}
    options["use_safetensors"] = True  # other files of weights can run code as they are read
    model: Model
    model, told = _load("AutoModelForCausalLM", location, output_loading_info=True, **options)
    if told["missing_keys"]:  # transformers would go on with random numbers in their place
        raise ModelError(
            f"model.base: {location} lacks {len(told['missing_keys'])} of the model's weights, "
            f"{sorted(told['missing_keys'])[0]} for one. Copy the folder again, or take another base."
        )
    model.requires_grad_(False)
    model.config.use_cache = False
    return model.eval()


def generation_settings(location: str) -> GenerationSettings:
    """The generation settings of a base: its own file's, or what its configuration says."""
    import transformers

    config = _load("AutoConfig", location)
    try:
        found: GenerationSettings = transformers.GenerationConfig.from_pretrained(
            location, local_files_only=Path(location).is_dir()
        )
    except OSError:  # most bases without a file of their own
        found = transformers.GenerationConfig.from_model_config(config)
    return found


def load_skeleton(location: str) -> Model:
    """Build the model's modules without weights (on torch's `meta` device): all that naming LoRA factors needs."""
    import torch
    import transformers

    config = _load("AutoConfig", location)
    with torch.device("meta"):
        try:
            skeleton: Model = transformers.AutoModelForCausalLM.from_config(config)
        except Exception as error:  # whatever a model's own code makes of a strange configuration
            raise ModelError(f"model.base: {location} is no causal language model ({in_a_line(error)}).") from None
    return skeleton


PARTS = {
    "AutoConfig": "config.json cannot be used",
    "AutoTokenizer": "its tokenizer cannot be loaded; tokenizer.json and the like belong beside config.json",
    "AutoModelForCausalLM": "its weights cannot be loaded, or are not those that config.json describes",
}
"""What it means that transformers cannot load something."""


def _load(kind: str, location: str, **options: object) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import transformers

    local = Path(location).is_dir()
    try:
        with without_bars():
            return getattr(transformers, kind).from_pretrained(location, local_files_only=local, **options)
    except Exception as error:  # files that are wrong in any way: each library below has errors of its own
        if out_of_memory(error):
            raise ModelError(
                f"model.base: {location} does not fit into the memory that is left. Take a smaller base, or smaller "
                "numbers with model.dtype."
            ) from None
        if local:
            if kind != "AutoConfig":
                _load("AutoConfig", location)  # the other parts read it too: if it is wrong, that is what to say
            if kind == "AutoModelForCausalLM" and any(Path(location).glob("pytorch_model*.bin")):
                raise ModelError(
                    f"model.base: {location}: its weights are in torch's own format, which can run code as it is read, "
                    "and not in safetensors. Load them where you trust them, with transformers, and save them with "
                    "save_pretrained."
                ) from None
            raise ModelError(f"model.base: {location}: {PARTS[kind]} ({in_a_line(error)}).") from None
        raise ModelError(
            f"model.base: {location!r} is no embedded name, file or folder here, and could not be had from the "
            f"Hugging Face hub ({in_a_line(error)})."
        ) from None


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing its own bars."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()
