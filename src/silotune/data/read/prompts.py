"""Prompts from a file: a line each, or rows that hold a prompt or a conversation that waits for its answer."""

from dataclasses import replace
from pathlib import Path

from silotune.data.read.files import printable, suffixes
from silotune.data.read.readers import read_records
from silotune.data.read.records import Record
from silotune.data.read.rows import Conversation, Turn
from silotune.data.read.shapes import Shape, asked_in
from silotune.data.read.turns import FORMS
from silotune.errors import DataError
from silotune.settings import ON_TOP

FIELDS = ("messages", "conversations", "prompt", "instruction", "question")
"""Fields that hold what is asked; the others of a row mean what they mean in training."""


def read_prompts(path: Path, system: str | None = None) -> list[Conversation]:
    """The conversations of a file that wait for an answer, in its order.

    In a `.txt` file each line is a prompt; blank ones are none. Rows of the other formats (`.jsonl`, `.json`, `.csv`,
    `.tsv`, `.parquet`) hold one of `FIELDS`; fields that are no part of a prompt (a response, say) are not read.

    Args:
        path: of the file.
        system: a system turn for prompts that have none of their own.

    Raises:
        DataError: naming the line; or the file has no prompt.
    """
    lines = suffixes(path)[0] == ".txt"
    records = read_records(str(path), "line")
    found = [
        conversation(str(record.fields["text"]), system) if lines else _prompt(record, system) for record in records
    ]
    if not found:
        raise DataError(f"{printable(path)}: no prompt in it.")
    return found


def _prompt(record: Record, system: str | None) -> Conversation:
    given = [name for name in FIELDS if name in record.fields]
    if len(given) != 1:
        found = f"{' and '.join(given)} both say what is asked" if given else "no field says what is asked"
        raise DataError(f"{record.where}: {found}. Use messages or prompt.")
    body = given[0] if given[0] in FORMS else "prompt"
    asked = asked_in(record, Shape(body, {body: given[0], **{name: name for name in ON_TOP[body]}}))
    if asked.turns[-1].role not in ("user", "tool"):
        raise DataError(
            f"{record.where}: {given[0]}: the last turn must be the user's, or a tool's, for the model to answer it."
        )
    if asked.turns[0].role == "system" or not system:
        return asked
    return replace(asked, turns=(Turn("system", system), *asked.turns))


def conversation(prompt: str, system: str | None = None) -> Conversation:
    """A conversation that waits for its first answer."""
    return Conversation((*([Turn("system", system)] if system else []), Turn("user", prompt)))
