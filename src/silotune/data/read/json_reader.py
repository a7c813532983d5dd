"""Records from JSON: one object a line, or one array of objects. Both are streamed."""

import codecs
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from silotune.data.read.files import MOST_ROW, no_other_kind, numbered_lines, opened, printable, text_size, too_long
from silotune.data.read.records import Record, json_type
from silotune.errors import DataError
from silotune.settings import TextRows

LONGEST_WORD = 16
"""Characters at most of what the decoder finds wrong where it begins if its end is missing: `tru`, `\\u00`."""


def json_records(stream: BinaryIO, path: Path, _: TextRows) -> Iterator[Record]:
    """JSON Lines, or one array of objects; the first character tells which, whatever the file is called."""
    if _first_character(path) == b"[":
        return _array(stream, printable(path))
    return _json_lines(stream, path)


def _first_character(path: Path) -> bytes:
    """The file's first byte that is no white space and no byte order mark."""
    with opened(path) as stream:
        head = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
        while not head and (block := stream.read(1 << 16)):
            head = block.lstrip(b" \t\r\n")
        return head[:1]


def _json_lines(stream: BinaryIO, path: Path) -> Iterator[Record]:
    shown = printable(path)
    for number, line in numbered_lines(stream, path):
        text = line.strip(" \t\r\n")
        if text:
            where = f"{shown}:{number}"
            yield Record(number, where, _object(_decoded(text, where), where))


def parsed(text: str, where: str) -> object:
    """The value of a JSON text that stands in a field, as strictly as that of a row.

    Raises:
        DataError: it is none.
    """
    return _decoded(text.strip(), where)


def _decoded(text: str, where: str) -> object:
    decoder = _decoder(where)
    try:
        value, end = decoder.raw_decode(text)
    except json.JSONDecodeError as error:
        # An object that goes on below, as programs that indent write it.
        goes_on = error.pos >= len(text) and text.startswith("{")
        advice = " Put each object on one line, or all of them in one array, [ ... ]." if goes_on else ""
        raise DataError(f"{where}: not valid JSON (column {error.colno}): {error.msg.lower()}.{advice}") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply.") from None
    except ValueError:
        raise DataError(f"{where}: a number of absurd size.") from None
    if end < len(text):
        second = " Two objects stand on one line: put each on its own." if text[end:].lstrip().startswith("{") else ""
        raise DataError(f"{where}: text after the end of the row (column {end + 1}).{second}")
    return value


def _decoder(where: str) -> json.JSONDecoder:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        record = dict(pairs)
        if len(record) != len(pairs):
            raise DataError(f"{where}: a field stands twice in the row.")
        return record

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise DataError(f"{where}: a number of absurd size.")
        return value

    def no_constant(text: str) -> float:
        raise DataError(f"{where}: {text} is not JSON.")

    return json.JSONDecoder(object_pairs_hook=unique, parse_float=finite, parse_constant=no_constant)


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row must be a JSON object with fields, not {json_type(value)}.")
    return value


class _Blocks:
    """Text that is read block by block, and the number of the line where what is left begins."""

    def __init__(self, stream: BinaryIO, shown: str) -> None:
        self.text, self.position, self.number = "", 0, 1
        self._stream, self._shown = stream, shown
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._begun = False

    @property
    def where(self) -> str:
        return f"{self._shown}:{self.number}"

    def advance(self, position: int) -> None:
        """Leave behind what stands before `position`."""
        self.number += self.text.count("\n", self.position, position)
        self.position = position

    def more(self, size: int = 1 << 20) -> bool:
        """Read on; return whether there was more."""
        block = self._stream.read(size)
        if not self._begun:
            no_other_kind(block, self._shown)
            self._begun = True
        end = self.number + self.text.count("\n", self.position)
        if b"\x00" in block:
            line = end + block.count(b"\n", 0, block.index(0))
            raise DataError(f"{self._shown}:{line}: a NUL byte. Save the file as UTF-8 text.")
        try:
            decoded = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line = end + block.count(b"\n", 0, error.start)
            raise DataError(f"{self._shown}:{line}: not UTF-8. Save the file as UTF-8.") from None
        self.text, self.position = self.text[self.position :] + decoded, 0
        return bool(block)

    def next_character(self) -> str:
        """The next character that is no white space, left where it stands; empty at the end of the file."""
        while True:
            found = _SPACE.match(self.text, self.position)
            assert found is not None
            self.advance(found.end())
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def element(self) -> object:
        """Read the JSON value that starts here."""
        decoder = _decoder(self.where)
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.position)
            except RecursionError:
                raise DataError(f"{self.where}: nested too deeply.") from None
            except json.JSONDecodeError as error:
                # Read on for twice its length if the block's end cuts it, so that time stays linear.
                held = len(self.text) - self.position
                if self._cut(error) and held > MOST_ROW:
                    raise too_long(self.where, " A quote or bracket in it may never be closed.") from None
                if self._cut(error) and self.more(max(held, 1 << 20)):
                    continue
                line = self.number + self.text.count("\n", self.position, error.pos)
                raise DataError(f"{self._shown}:{line}: not valid JSON: {error.msg.lower()}.") from None
            except ValueError:
                raise DataError(f"{self.where}: a number of absurd size.") from None
            if end - self.position > MOST_ROW // 4 and text_size(self.text[self.position : end]) > MOST_ROW:
                raise too_long(self.where)
            self.advance(end)
            return value

    def _cut(self, error: json.JSONDecodeError) -> bool:
        """Whether an error may come of the block's end only."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - LONGEST_WORD


_SPACE = re.compile(r"[ \t\r\n]*")


def _array(stream: BinaryIO, shown: str) -> Iterator[Record]:
    text = _Blocks(stream, shown)
    text.next_character()
    text.advance(text.position + 1)
    while (character := text.next_character()) != "]":
        if character == "":
            raise DataError(f"{text.where}: the array has no end; the file is cut short.")
        where, number = text.where, text.number
        yield Record(number, where, _object(text.element(), where))
        separator = text.next_character()
        if separator == ",":
            text.advance(text.position + 1)
            if text.next_character() == "]":
                raise DataError(f"{text.where}: a comma before the end of the array.")
        elif separator not in ("]", ""):
            raise DataError(f"{text.where}: a comma or ] should follow the row before.")
    text.advance(text.position + 1)
    if text.next_character():
        raise DataError(f"{text.where}: text after the end of the array.")
