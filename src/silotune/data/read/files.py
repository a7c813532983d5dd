"""Files opened with suspicion: what is no plain file, is damaged or unpacks without end is refused, with its name.

Everything is streamed. What is held in memory at a time is one line of at most `MOST_ROW` bytes.
"""

import errno
import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from silotune.errors import DataError

MOST_ROW = 16 << 20
"""Bytes of one row at most: to tokenise a text takes some hundred times its size."""
MOST_RATIO, FREE_BYTES = 200, 64 << 20
"""A packed file may unpack to this many times its size (text packs to about a tenth), and to these bytes always."""

GZIP = ".gz"


def printable(name: object) -> str:
    """A name as it may be shown in a terminal: control characters written as escapes."""
    text = str(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def text_size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def too_long(where: str, advice: str = "") -> DataError:
    """The refusal of a row that is longer than `MOST_ROW`."""
    return DataError(f"{where}: the row is longer than {MOST_ROW >> 20} MiB.{advice}")


def suffixes(path: Path) -> tuple[str, bool]:
    """The file's format by its name, lower case, and whether it is packed with gzip: `.csv`, True for `a.CSV.gz`."""
    name = path.name.lower()
    packed = name.endswith(GZIP)
    return Path(name.removesuffix(GZIP)).suffix, packed


def require_file(path: Path, inside: Path | None = None) -> int:
    """Return the size of a plain file.

    Args:
        path: what should be a plain file, or a link to one.
        inside: the folder that links must not lead out of.

    Raises:
        DataError: it is none, is out of bounds, or cannot be looked at.
    """
    shown = printable(path)
    try:
        status = path.stat()
    except ValueError:  # a NUL, or a character that the file system has no bytes for
        raise DataError(f"{shown}: no file can have this name.") from None
    except FileNotFoundError:
        broken = " (a link to nothing)" if path.is_symlink() else ""
        raise DataError(f"{shown}: no such file{broken}.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"{shown}: a link that leads back to itself.") from None
        raise DataError(f"{shown}: cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{shown}: {_kind(status.st_mode)}, not a file. Give a file of rows.")
    if inside is not None and not path.resolve().is_relative_to(inside.resolve()):
        raise DataError(
            f"{shown}: a link that leads out of the silo's folder. Copy the file there, or name it in the recipe "
            "with [[data.silos]]."
        )
    return status.st_size


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked if its name ends with `.gz`; errors of reading become DataErrors.

    Raises:
        DataError: it cannot be read, is damaged or cut short, or unpacks to more than it may.
    """
    size = require_file(path)
    shown = printable(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO put there meanwhile must not hold us
        with open(descriptor, "rb") as raw:  # noqa: PTH123 - a descriptor
            if not suffixes(path)[1]:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as packed:
                yield _Bounded(packed, max(FREE_BYTES, MOST_RATIO * size), shown)  # type: ignore[misc]
    except EOFError:
        raise DataError(f"{shown}: the gzip file is cut short. Copy it again.") from None
    except (gzip.BadGzipFile, zlib.error):
        require_text(start_of(path), shown)
        raise DataError(f"{shown}: not a sound gzip file. Copy it again, or drop `.gz` from its name.") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be read ({error.strerror}).") from None


class _Bounded:
    """A stream that refuses to yield more than so many bytes."""

    def __init__(self, stream: gzip.GzipFile, most: int, shown: str) -> None:
        self._stream, self._left, self._most, self._shown = stream, most, most, shown

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._shown}: unpacks to more than {self._most >> 20} MiB, {MOST_RATIO} times its size or more. "
                "Unpack it yourself if it is what it should be."
            )
        return data

    def read(self, size: int = -1) -> bytes:
        return self._counted(self._stream.read(size if size >= 0 else self._left + 1))

    def readline(self, size: int = -1) -> bytes:
        return self._counted(self._stream.readline(size if size >= 0 else self._left + 1))


def numbered_lines(stream: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    r"""Yield (number from 1, text) of each line of a UTF-8 stream; a line ends with `\n` and with nothing else.

    The line's end stays on it. A byte order mark at the start of the file is taken away.

    Raises:
        DataError: not UTF-8, a NUL byte, or a line longer than `MOST_ROW`.
    """
    shown = printable(path)
    number = 0
    while line := stream.readline(MOST_ROW + 1):
        number += 1
        if number == 1:
            no_other_kind(_start_of(path), shown)
        if len(line) > MOST_ROW:
            raise too_long(f"{shown}:{number}")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\x00" in line:
            raise DataError(f"{shown}:{number}: a NUL byte (column {line.index(0) + 1}). Save the file as UTF-8 text.")
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{shown}:{number}: not UTF-8 (byte {error.start + 1} of the line). Save the file as UTF-8."
            ) from None


def _start_of(path: Path) -> bytes:
    """The first bytes of a file, unpacked where it is packed."""
    with opened(path) as stream:
        return stream.read(LOOKED_AT)


def start_of(path: Path) -> bytes:
    """The first bytes of a file as it lies there."""
    with path.open("rb") as stream:
        return stream.read(LOOKED_AT)


KINDS: Sequence[tuple[bytes, str, str]] = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "Fetch it with: git lfs pull"),
    (b"%PDF-", "a PDF", "Take the text out of it first."),
    (b"{\\rtf", "a document in RTF", "Save it as plain text first."),
    (b"\x89PNG\r\n", "a picture (PNG)", "Give text."),
    (b"\xff\xd8\xff", "a picture (JPEG)", "Give text."),
    (b"GIF87a", "a picture (GIF)", "Give text."),
    (b"GIF89a", "a picture (GIF)", "Give text."),
    (b"PAR1\x15", "Parquet", "Let its name end with .parquet."),
    (b"ARROW1\0\0", "Arrow", "Write it as Parquet or JSON Lines."),
    (b"SQLite format 3", "a database (SQLite)", "Write its rows to a file of rows."),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of an old Office", "Save it as plain text, or a table as CSV."),
    (b"BZh91AY&SY", "packed with bzip2", "Unpack it, or pack it with gzip."),
    (b"\xfd7zXZ\x00", "packed with xz", "Unpack it, or pack it with gzip."),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "Unpack it, or pack it with gzip."),
    (b"7z\xbc\xaf\x27\x1c", "an archive (7z)", "Unpack it."),
    (b"Rar!\x1a\x07", "an archive (RAR)", "Unpack it."),
    (b"GGUF\x03\0\0\0", "a model (GGUF)", "Give text."),
    (b"\x7fELF", "a program", "Give text."),
    (b"\x93NUMPY", "an array of NumPy", "Give text."),
)
"""How files begin that are no text, what they are, and what to do."""
WITHIN: Sequence[tuple[bytes, str, str]] = (
    (b"word/", "a Word document (DOCX)", "Save it as plain text first."),
    (b"xl/", "an Excel workbook (XLSX)", "Save its sheet as CSV."),
    (b"ppt/", "slides (PPTX)", "Save their text first."),
    (b"mimetypeapplication/vnd.oasis", "an OpenDocument file", "Save it as plain text, or a table as CSV."),
    (b"mimetypeapplication/epub", "an e-book (EPUB)", "Save its text first."),
)
"""What names of files in a ZIP archive say it is."""
PAGE = re.compile(
    rb"\s*(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html[\s>]|head[\s>])", re.IGNORECASE | re.DOTALL
)
LOOKED_AT = 4096
"""Bytes at the start of a file by which it is known for what it is."""


def kind_of_file(start: bytes) -> tuple[str, str] | None:
    """What a file is that is no text, and what to do, by its first bytes; None if it may be text."""
    start = start.removeprefix(b"\xef\xbb\xbf")
    if start.lstrip().startswith(b"%PDF-"):
        start = start.lstrip()
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        archive = next((pair for mark, *pair in WITHIN if mark in start[:LOOKED_AT]), None)
        return (archive[0], archive[1]) if archive else ("a ZIP archive", "Unpack it.")
    for mark, kind, advice in KINDS:
        if start.startswith(mark):
            return kind, advice
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "a picture (WEBP)", "Give text."
    if PAGE.match(start[:LOOKED_AT]):
        return "a web page (HTML)", "It may be an error page in place of the file: fetch that again, or give its text."
    if start[257:262] == b"ustar":
        return "an archive (tar)", "Unpack it."
    return None


def require_text(start: bytes, shown: str) -> None:
    """Refuse by its name what a file is instead of text; `start` has its first `LOOKED_AT` bytes, or fewer.

    Raises:
        DataError: a document, a picture, an archive and so on.
    """
    if (found := kind_of_file(start)) is not None:
        raise DataError(f"{shown}: the file is {found[0]}. {found[1]}") from None


def no_other_kind(start: bytes, shown: str) -> None:
    """Refuse by its name what a file is instead of UTF-8 text; `start` has its first `LOOKED_AT` bytes, or fewer.

    Raises:
        DataError: gzip, UTF-16 or UTF-32 (with a byte order mark or not), or as `require_text`.
    """
    if start.startswith(b"\x1f\x8b"):
        raise DataError(f"{shown}: the file is packed with gzip. Let its name end with {GZIP}.")
    require_text(start, shown)
    wide = start.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"))
    zeros = start[:64].count(0)
    if wide or (zeros >= 4 and zeros * 3 >= len(start[:64])):
        raise DataError(f"{shown}: the file is UTF-16 or UTF-32. Save it as UTF-8.")
