"""Records from plain text: the whole file, its paragraphs or its lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from silotune.data.files import MOST_ROW, numbered_lines, printable
from silotune.data.records import Record
from silotune.errors import DataError
from silotune.settings import TextRows


def text_records(stream: BinaryIO, path: Path, text_rows: TextRows) -> Iterator[Record]:
    """Yield texts as they stand, without the line end that closes them; blank ones are no rows."""
    shown = printable(path)
    kept: list[str] = []
    start, held = 1, 0
    for number, line in numbered_lines(stream, path):
        blank = not line.strip()
        ends = text_rows == "line" or (text_rows == "paragraph" and blank)
        if not (blank and (ends or not kept)):
            start = number if not kept else start
            kept.append(line)
            held += len(line)
            if held > MOST_ROW:
                raise DataError(
                    f"{shown}:{start}: a text longer than {MOST_ROW >> 20} MiB. "
                    f"Set data.text_rows to paragraph or line."
                )
        if ends and kept:
            yield Record(start, f"{shown}:{start}", {"text": _without_end("".join(kept))})
            kept, held = [], 0
    if kept and (text := _without_end("".join(kept))).strip():
        yield Record(start, f"{shown}:{start}", {"text": text})


def _without_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
