"""The ledger: a line for every message, as it was serialised, appended and never rewritten.

The server's has what it sent, when it was sent, and what it received, when it looked: an answer that came after its
deadline is entered as late, if Flower still has it when the server next looks (with the next messages, or when the
run ends). One that came later still left its silo and is not in the server's ledger; it is in the silo's own.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from silotune.wire.envelope import Direction, Scalar


@dataclass(frozen=True)
class Entry:
    """One message."""

    direction: Direction
    silo: str
    kind: str
    round: int
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    """Names and shapes, in the order in which they lie in the one array."""
    dtype: str | None
    fields: Mapping[str, Scalar]
    """Everything in the message that is not the array or its manifest."""
    bytes: int
    """Bytes of the whole message as serialised, names and manifest included."""
    sha256: str
    """SHA-256 of its serialised content."""
    node: int | None = None
    """Flower's number of the silo's node, where the server knows it: the silo's name may not be known yet."""
    late: bool = False
    """Came after its deadline and was not used."""


class LedgerLine(TypedDict):
    """An entry as it stands in the file."""

    time: str
    """When it was entered, in ISO's form."""
    direction: Direction
    silo: str
    kind: str
    round: int
    bytes: int
    dtype: str | None
    sha256: str
    node: int | None
    late: bool
    fields: dict[str, Scalar]
    tensors: Sequence[Sequence[Any]]
    """Pairs of name and shape; JSON has no tuples whose parts have types of their own."""


def append(path: Path, entry: Entry) -> None:
    """Append an entry as one line of JSON in one write, so that no crash of this process can tear it."""
    line: LedgerLine = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "direction": entry.direction,
        "silo": entry.silo,
        "kind": entry.kind,
        "round": entry.round,
        "bytes": entry.bytes,
        "dtype": entry.dtype,
        "sha256": entry.sha256,
        "node": entry.node,
        "late": entry.late,
        "fields": dict(entry.fields),
        "tensors": [[name, list(shape)] for name, shape in entry.tensors],
    }
    append_line(path, json.dumps(line, ensure_ascii=False))


def append_line(path: Path, line: str) -> None:
    """Append one line to a file with a single write; a line that a crash of the machine tore before is ended first.

    What has no bytes in UTF-8 is escaped as JSON escapes it: whoever sent it must not keep a line from being written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        written = ("\n" * torn + line + "\n").encode("utf-8", "backslashreplace")
        if os.write(descriptor, written) < len(written):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> Iterator[Any]:
    """All lines of a file that `append_line` wrote, in order; torn ones are passed over, a missing file is empty."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        for line in stream:
            try:
                yield json.loads(line)
            except ValueError:
                continue
