"""The process's own streams, for a command that must end well whatever becomes of them.

What a command prints on standard output is what it was asked for: if it cannot be written the command ends, with one
message. What it says on standard error is for whoever looks: if nobody does, or it cannot be written, it goes on.
"""

import contextlib
import errno
import io
import os
import sys
from pathlib import Path
from typing import IO, TextIO

from silotune.errors import OutputError


class Output(io.TextIOWrapper):
    """Standard output: what cannot be written ends the command."""

    def write(self, text: str, /) -> int:
        """Write.

        Raises:
            OutputError: it cannot be.
        """
        try:
            return super().write(text)
        except OSError as error:
            raise _unwritten(error) from None

    def flush(self) -> None:
        """Write what is held back.

        Raises:
            OutputError: it cannot be.
        """
        try:
            super().flush()
        except OSError as error:
            raise _unwritten(error) from None


class Remarks(io.TextIOWrapper):
    """Standard error: what cannot be written is lost, and the command goes on."""

    def write(self, text: str, /) -> int:
        """Write if it can be."""
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is held back, if it can be."""
        with contextlib.suppress(OSError):
            super().flush()


def _unwritten(error: OSError) -> OutputError:
    if error.errno == errno.EPIPE:
        return OutputError("whoever read standard output has gone.")
    return OutputError(f"standard output cannot be written ({error.strerror or error}).")


def install() -> None:
    """Put both in the place of Python's own; a stream that the process was started without leads nowhere."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened would be taken for it
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - for the life of the process
    if sys.stdout in (None, sys.__stdout__):
        sys.stdout = output(1, sys.stdout)
    if sys.stderr in (None, sys.__stderr__):
        sys.stderr = remarks(2, sys.stderr)


def output(descriptor: int, like: TextIO | None = None) -> Output:
    """A standard output on a descriptor, which it does not close."""
    return Output(_raw(descriptor), encoding=_encoding(like), errors="replace", line_buffering=os.isatty(descriptor))


def remarks(descriptor: int, like: TextIO | None = None) -> Remarks:
    """A standard error on a descriptor, which it does not close."""
    return Remarks(_raw(descriptor), encoding=_encoding(like), errors="backslashreplace", line_buffering=True)


def _raw(descriptor: int) -> IO[bytes]:
    return open(descriptor, "wb", closefd=False)


def _encoding(like: TextIO | None) -> str:
    return like.encoding if like is not None else "utf-8"


def end(code: int) -> None:
    """End the process with a code, whatever can still be written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OutputError, OSError, ValueError):
            stream.flush()
    with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:
        for descriptor in (1, 2):  # what is still held back must not fail once more when Python ends
            os.dup2(nowhere.fileno(), descriptor)
    sys.exit(code)
