"""GGUF files, converted once to the safetensors format that loads in a second."""

import contextlib
import hashlib
import io
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from silotune.cache import build_once, kept
from silotune.errors import ModelError
from silotune.model.protocols import Model


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def in_a_line(error: Exception) -> str:
    """What a library's error says, short and in one line; with its kind where that says more than the words."""
    said = " ".join(str(error).split())[:200].rstrip(".")
    return said if said and isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {said}".rstrip(": ")


def converted(path: Path) -> Path:
    """Return a folder in Hugging Face format with the weights of a GGUF file in float32, from the cache if there.

    Raises:
        ModelError: the file is not GGUF, or of an architecture that transformers cannot read.
    """
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from None
    if magic != b"GGUF":
        raise ModelError(f"{path}: not a GGUF file. Give a GGUF file, a folder or a hub id.")
    return build_once(f"models/gguf-{_digest(path)[:16]}", lambda folder: convert(path, folder))


def _digest(path: Path) -> str:
    """SHA-256 of a file, read once for all processes until the file changes: it may have many gigabytes."""
    status = path.stat()
    stamp = repr((str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino))
    key = hashlib.sha256(stamp.encode()).hexdigest()[:32]

    def note(folder: Path) -> None:
        (folder / "sha256").write_text(sha256_of(path), encoding="utf-8")

    return (kept("digests", key, note) / "sha256").read_text(encoding="utf-8")


def convert(path: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file to `folder`, as safetensors in float32."""
    import torch
    import transformers

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # The libraries below draw a bar for each of their steps; the one bar that is shown is ours.
    screen = Console(file=sys.stderr)
    with Progress(*columns, console=screen) as progress, contextlib.redirect_stderr(io.StringIO()):
        progress.add_task(f"converting {path.name} (once)", total=None)
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        except Exception as error:  # a file that was cut off or is of a strange kind fails in many ways
            raise ModelError(f"{path}: transformers cannot read this GGUF file ({in_a_line(error)}).") from None
        _forget_quantization(model)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _forget_quantization(model: Model) -> None:
    """Drop the marks of the GGUF file: the weights are plain float32 now, and transformers would refuse to save."""
    for holder, names in (
        (model.config, ("quantization_config",)),
        (model, ("hf_quantizer", "quantization_method", "is_quantized")),
    ):
        for name in names:
            if name in vars(holder):
                delattr(holder, name)
