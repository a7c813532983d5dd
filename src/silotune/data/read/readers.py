"""Files of every format to records: `.jsonl .json .csv .tsv .txt` (also `.gz`), `.parquet`, and `hf:` dataset ids.

What the fields mean is the business of `shapes`. All formats are streamed; a record holds at most `MOST_ROW` bytes.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from silotune.data.read.files import opened, printable, suffixes
from silotune.data.read.hub import hub_records
from silotune.data.read.json_reader import json_records
from silotune.data.read.parquet_reader import parquet_records
from silotune.data.read.records import Record
from silotune.data.read.table_reader import table_records
from silotune.data.read.text_reader import text_records
from silotune.errors import DataError
from silotune.settings import HUB, TextRows

READERS: Mapping[str, Callable[[BinaryIO, Path, TextRows], Iterator[Record]]] = {
    ".jsonl": json_records,
    ".json": json_records,
    ".csv": table_records(","),
    ".tsv": table_records("\t"),
    ".txt": text_records,
}
ENDINGS = (*READERS, *(f"{ending}.gz" for ending in READERS), ".parquet")
"""Endings of files that can be read."""


def read_records(source: str, text_rows: TextRows = "document") -> Iterator[Record]:
    """Yield the records of a file, or of a dataset `hf:NAME[:CONFIG][@SPLIT]`.

    Args:
        source: a path or a dataset id.
        text_rows: what is a row of a `.txt` file: the file, a paragraph (empty lines between), or a line.

    Raises:
        DataError: naming file and line, when that line is reached.
    """
    if source.startswith(HUB):
        yield from hub_records(source)
        return
    path = Path(source)
    ending, packed = suffixes(path)
    if ending == ".parquet" and not packed:
        yield from parquet_records(path)
        return
    reader = READERS.get(ending)
    if reader is None:
        raise DataError(f"{printable(path)}: no known format of rows. Use {', '.join(ENDINGS)}.")
    with opened(path) as stream:
        yield from reader(stream, path, text_rows)


def place(source: str, number: int) -> str:
    """Where a row stands, as messages name it: `FILE:LINE`, or the number of the row where there are no lines."""
    lines = not source.startswith(HUB) and suffixes(Path(source))[0] != ".parquet"
    return f"{printable(source)}:{number}" if lines else f"{printable(source)}: row {number}"
