"""The ledger: a line for every message, as it was serialised, appended and never rewritten."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

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
    """Of the whole message as serialised, names and manifest included."""
    sha256: str
    """Of its serialised content."""


def append(path: Path, entry: Entry) -> None:
    """Append an entry as one line of JSON in one write, so that no crash of this process can tear it."""
    line = json.dumps(
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "direction": entry.direction,
            "silo": entry.silo,
            "kind": entry.kind,
            "round": entry.round,
            "bytes": entry.bytes,
            "dtype": entry.dtype,
            "sha256": entry.sha256,
            "fields": dict(entry.fields),
            "tensors": [[name, list(shape)] for name, shape in entry.tensors],
        },
        ensure_ascii=False,
    )
    append_line(path, line)


def append_line(path: Path, line: str) -> None:
    """Append one line to a file with a single write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, (line + "\n").encode("utf-8"))
    finally:
        os.close(descriptor)
