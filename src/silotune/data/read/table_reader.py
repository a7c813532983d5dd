"""Records from tables with a header: CSV and TSV, read strictly."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from silotune.data.read.files import MOST_ROW, numbered_lines, printable, text_size, too_long
from silotune.data.read.records import Record, twice
from silotune.errors import DataError
from silotune.settings import TextRows

NAMES = {",": "commas", "\t": "tabs"}


def table_records(separator: str) -> Callable[[BinaryIO, Path, TextRows], Iterator[Record]]:
    """A reader of tables whose columns are split by `separator`. Fields may be quoted and hold line ends."""

    def records(stream: BinaryIO, path: Path, _: TextRows) -> Iterator[Record]:
        lines = _RowLines(stream, path)
        # Set each time: another library may have changed it meanwhile.
        csv.field_size_limit(MOST_ROW)
        rows = csv.reader(lines, delimiter=separator, strict=True)
        header: list[str] = []
        while True:
            number, where = lines.begin_row()
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise DataError(f"{where}: not a sound table ({_reason(error)}).") from None
            if row is None:
                return
            if not row:
                continue
            if not header:
                header = _header(row, where, separator)
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{where}: {len(row)} columns, the header has {len(header)}. Quote what holds {NAMES[separator]}."
                )
            yield Record(number, where, dict(zip(header, row, strict=True)))

    return records


class _RowLines:
    """The lines of a file, counted by the row that they belong to."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._lines = numbered_lines(stream, path)
        self._shown = printable(path)
        self._read = self._first = self._held = 0

    def begin_row(self) -> tuple[int, str]:
        """Number and place of the row that begins with the next line."""
        self._first, self._held = self._read + 1, 0
        return self._first, f"{self._shown}:{self._first}"

    def __iter__(self) -> "_RowLines":
        return self

    def __next__(self) -> str:
        self._read, line = next(self._lines)
        self._held += text_size(line)
        if self._held > MOST_ROW:
            several = " A quote in it may never be closed." if self._read > self._first else ""
            raise too_long(f"{self._shown}:{self._first}", several)
        return line


def _reason(error: csv.Error) -> str:
    """The csv module's reason, where it is one of those that quote nothing."""
    text = str(error).lower()
    reasons = {
        "unexpected end of data": "a quote is never closed",
        "expected after": "text after a closing quote",
        "new-line character seen in unquoted field": r"lines end with \r alone, as on old Macs; save it with \n",
        "field larger than field limit": "a field is too long",
    }
    return next((plain for part, plain in reasons.items() if part in text), "it cannot be split into columns")


def _header(row: list[str], where: str, separator: str) -> list[str]:
    names = [name.strip() for name in row]
    if any(not name for name in names):
        raise DataError(f"{where}: column {names.index('') + 1} of the header has no name.")
    if places := twice(names):
        raise DataError(f"{where}: columns {places[0]} and {places[1]} of the header have one name.")
    other = ";" if separator == "," else ","
    if len(names) == 1 and other in names[0]:
        raise DataError(f"{where}: the header is one column with {other!r} in it; columns must be split by "
                        f"{NAMES[separator]}.")  # fmt: skip
    return names
