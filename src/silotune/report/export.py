"""A run's result in the forms that other programs load, each a folder that is whole or not there."""

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from silotune import atomic
from silotune.errors import InputError, OutputError, RunError
from silotune.federation.result import adapter_spec
from silotune.federation.run import RunFolder
from silotune.model import base, lora, merging, to_gguf
from silotune.model.adapter import AdapterState
from silotune.model.magnitudes import base_norms
from silotune.model.merging import Checked
from silotune.report import card
from silotune.report.card import Form

FOLDER = "export"
"""Below a run's folder: where its exports go if nobody says otherwise."""


def write(
    run: RunFolder,
    to: Form,
    out: Path | None = None,
    converter: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the result of a run in a form that other programs load, and return its folder.

    Args:
        run: a run that has come to its end.
        to: `adapter`, `merged` or `gguf`.
        out: a folder that is not there yet; `export/` in the run's folder if left out.
        converter: llama.cpp's script, for `gguf`; fetched on first use if left out.
        report: called with what is being done.

    Raises:
        InputError: something is there already, it cannot be written, or the model cannot be had in this form.
    """
    if to not in get_args(Form):
        raise InputError(f"--to {to}: there are {', '.join(get_args(Form))}.")
    if converter is not None and to != "gguf":
        raise InputError(f"--converter goes with --to gguf, not with --to {to}.")
    target = (out or run.path / FOLDER / to).absolute()
    with _new_folder(target) as folder:
        if to == "adapter":
            report("copying the adapter")
            _adapter(run, folder)
        else:
            report("merging the adapter into the base, and comparing their logits")
            _merged(run, folder) if to == "merged" else _gguf(run, folder, converter, report)
    return target


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that is whole at the end or not there, where nothing is yet."""
    if target.exists() or target.is_symlink():
        raise RunError(f"{target}: is there already. Choose another --out, or remove it first.")
    try:
        with atomic.new_folder(target) as unfinished:
            yield unfinished
    except OSError as error:
        kind = OutputError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else RunError
        raise kind(f"{target}: cannot be written ({error.strerror or error}).") from None


def _read(run: RunFolder) -> AdapterState:
    """The run's adapter, if it is one of its base and settings."""
    recipe = run.recipe()
    norms = base_norms(base.locate(recipe.model.base), recipe.lora)
    name = base.published_name(recipe.model.base)
    return lora.load(run.adapter, adapter_spec(recipe), recipe.lora, name, norms)


def _adapter(run: RunFolder, folder: Path) -> None:
    _read(run)  # a fault is told here, and not by who is given it
    shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
    _save_tokenizer(run, folder)


def _merged(run: RunFolder, folder: Path) -> Checked:
    recipe = run.recipe()
    adapter = _read(run)
    checked = merging.write_merged(base.locate(recipe.model.base), recipe.lora, adapter, folder)
    _save_tokenizer(run, folder)
    (folder / "README.md").write_text(card.text(run, "merged", checked), encoding="utf-8")
    return checked


def _gguf(run: RunFolder, folder: Path, converter: Path | None, report: Callable[[str], None]) -> None:
    script = to_gguf.converter(converter)
    name = run.recipe().name
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        merged = Path(scratch) / name  # the converter calls the model after its folder
        merged.mkdir()
        checked = _merged(run, merged)
        report("converting, and comparing what is read again")
        difference = to_gguf.write_gguf(merged, folder / f"{name}-f32.gguf", script)
    (folder / "README.md").write_text(card.text(run, "gguf", checked, difference), encoding="utf-8")


def _save_tokenizer(run: RunFolder, folder: Path) -> None:
    """The base's tokenizer, with the very template that training used: the base may have none, or ask the date."""
    base.load_tokenizer(base.locate(run.recipe().model.base)).save_pretrained(folder)
