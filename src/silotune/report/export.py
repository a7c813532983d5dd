"""A run's result in the forms that other programs load, each a folder that is whole or not there."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from silotune.data.template import dated
from silotune.errors import InputError, RunError
from silotune.federation.run import RunFolder
from silotune.model import base, lora, merging
from silotune.report import card
from silotune.report.card import Form

FOLDER = "export"
"""Below a run's folder: where its exports go if nobody says otherwise."""


def write(run: RunFolder, to: Form, out: Path | None, report: Callable[[str], None] = lambda _: None) -> Path:
    """Write the result of a run in a form that other programs load, and return its folder.

    Args:
        run: a run that has come to its end.
        to: `adapter`, `merged` or `gguf`.
        out: a folder that is not there yet; `export/` in the run's folder if left out.
        report: called with what is being done.

    Raises:
        InputError: something is there already, it cannot be written, or the model cannot be had in this form.
    """
    if to not in get_args(Form):
        raise InputError(f"--to {to}: there are {', '.join(get_args(Form))}.")
    target = (out or run.path / FOLDER / to).absolute()
    with _new_folder(target) as folder:
        {"adapter": _adapter, "merged": _merged, "gguf": _merged}[to](run, folder, report)
    return target


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that takes its name when the block ends well, and goes with all that is in it otherwise."""
    if target.exists() or target.is_symlink():
        raise RunError(f"{target}: is there already. Choose another --out, or remove it first.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name[:80]}-", dir=target.parent))
        try:
            yield unfinished
            unfinished.chmod(0o755)
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror or error}).") from None


def _adapter(run: RunFolder, folder: Path, report: Callable[[str], None]) -> None:
    report("copying the adapter")
    lora.load(run.adapter)  # one that was cut short is told here, and not by who is given it
    shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
    _save_tokenizer(run, folder)


def _merged(run: RunFolder, folder: Path, report: Callable[[str], None]) -> None:
    report("merging the adapter into the base, and comparing their logits")
    recipe = run.recipe()
    checked = merging.write_merged(base.locate(recipe.model.base), recipe.lora, lora.load(run.adapter), folder)
    _save_tokenizer(run, folder)
    (folder / "README.md").write_text(card.text(run, "merged", checked), encoding="utf-8")


def _save_tokenizer(run: RunFolder, folder: Path) -> None:
    """The base's tokenizer, with the very template that training used: the base may have none, or ask the date."""
    tokenizer = base.load_tokenizer(base.locate(run.recipe().model.base))
    tokenizer.chat_template = dated(tokenizer.get_chat_template())
    tokenizer.save_pretrained(folder)
