"""Records from tables with a header: CSV and TSV, read strictly."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from silotune.data.files import MOST_ROW, numbered_lines, printable
from silotune.data.records import Record
from silotune.errors import DataError
from silotune.settings import TextRows


def table_records(separator: str) -> Callable[[BinaryIO, Path, TextRows], Iterator[Record]]:
    """A reader of tables whose columns are split by `separator`. Fields may be quoted and hold line ends."""

    def records(stream: BinaryIO, path: Path, _: TextRows) -> Iterator[Record]:
        shown = printable(path)
        lines = (line for _, line in numbered_lines(stream, path))
        # Set each time: another library may have changed it meanwhile.
        csv.field_size_limit(MOST_ROW)
        rows = csv.reader(lines, delimiter=separator, strict=True)
        header: list[str] = []
        start = 1
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise DataError(f"{shown}:{start}: not a sound table ({_reason(error)}).") from None
            if row is None:
                return
            where, number, start = f"{shown}:{start}", start, rows.line_num + 1
            if not row:
                continue
            if not header:
                header = _header(row, where, separator)
                continue
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} columns, the header has {len(header)}. Quote what holds commas.")
            yield Record(number, where, dict(zip(header, row, strict=True)))

    return records


def _reason(error: csv.Error) -> str:
    """The csv module's reason, where it is one of those that quote nothing."""
    text = str(error).lower()
    known = ("unexpected end of data", "new-line character seen in unquoted field", "field larger than field limit",
             "expected after")  # fmt: skip
    plain = {"unexpected end of data": "a quote is never closed", "expected after": "text after a closing quote"}
    found = next((part for part in known if part in text), "")
    return plain.get(found, found) or "it cannot be split into columns"


def _header(row: list[str], where: str, separator: str) -> list[str]:
    names = [name.strip() for name in row]
    if any(not name for name in names):
        raise DataError(f"{where}: column {names.index('') + 1} of the header has no name.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        first = names.index(twice)
        raise DataError(
            f"{where}: columns {first + 1} and {names.index(twice, first + 1) + 1} of the header have one name."
        )
    other = ";" if separator == "," else ","
    if len(names) == 1 and other in names[0]:
        raise DataError(f"{where}: the header is one column with {other!r} in it; columns must be split by "
                        f"{'commas' if separator == ',' else 'tabs'}.")  # fmt: skip
    return names
