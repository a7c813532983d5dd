"""Prompts from a file: a line each, or rows that hold a prompt or a conversation that waits for its answer."""

from collections.abc import Sequence
from pathlib import Path

from silotune.data.files import printable, suffixes
from silotune.data.readers import read_records
from silotune.data.records import Record
from silotune.data.rows import Turn
from silotune.data.shapes import checked, messages
from silotune.errors import DataError

FIELDS = ("messages", "prompt", "instruction", "question")
"""Fields that hold what is asked; as in training, an `instruction` may have an `input`, all but messages a `system`."""


def read_prompts(path: Path, system: str | None = None) -> list[Sequence[Turn]]:
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
    found = [turns(record.fields["text"], system) if lines else _prompt(record, system) for record in records]
    if not found:
        raise DataError(f"{printable(path)}: no prompt in it.")
    return found


def _prompt(record: Record, system: str | None) -> Sequence[Turn]:
    fields, where = record.fields, record.where
    given = [name for name in FIELDS if name in fields]
    if len(given) != 1:
        found = f"{' and '.join(given)} both say what is asked" if given else "no field says what is asked"
        raise DataError(f"{where}: {found}. Use messages or prompt.")
    name = given[0]
    if name == "messages":
        said = messages(fields[name], name, where)
        if said[-1].role != "user":
            raise DataError(f"{where}: messages: the last turn must be the user's, for the model to answer it.")
        return said if said[0].role == "system" or not system else [Turn("system", system), *said]
    prompt = checked(fields[name], name, where)
    if name == "instruction" and fields.get("input") not in (None, ""):
        prompt = f"{prompt}\n\n{checked(fields['input'], 'input', where)}"
    own = checked(fields["system"], "system", where) if fields.get("system") not in (None, "") else system
    return turns(prompt, own)


def turns(prompt: str, system: str | None) -> list[Turn]:
    """A conversation that waits for its first answer."""
    return [*([Turn("system", system)] if system else []), Turn("user", prompt)]
