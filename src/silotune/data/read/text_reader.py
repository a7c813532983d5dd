"""Records from plain text: the whole file, its paragraphs or its lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from silotune.data.read.files import MOST_ROW, numbered_lines, printable, text_size, too_long
from silotune.data.read.records import Record
from silotune.settings import TextRows


def text_records(stream: BinaryIO, path: Path, text_rows: TextRows) -> Iterator[Record]:
    """Yield texts as they stand, without the line end that closes them.

    A line of white space only (as `str.strip` has it) is blank. Blank lines part paragraphs and are no rows by
    themselves; in a document they stay. A document that is all blank is no row.
    """
    shown = printable(path)
    kept: list[str] = []
    start, held = 1, 0
    for number, line in numbered_lines(stream, path):
        parts = text_rows != "document" and not line.strip()
        if not parts:
            start = start if kept else number
            kept.append(line)
            held += text_size(line)
            if held > MOST_ROW:
                raise too_long(f"{shown}:{start}", " Set data.text_rows to paragraph or line.")
        if kept and (parts or text_rows == "line"):
            yield Record(start, f"{shown}:{start}", {"text": _without_end("".join(kept))})
            kept, held = [], 0
    if kept and (text := _without_end("".join(kept))).strip():
        yield Record(start, f"{shown}:{start}", {"text": text})


def _without_end(text: str) -> str:
    return text[:-1].removesuffix("\r") if text.endswith("\n") else text
