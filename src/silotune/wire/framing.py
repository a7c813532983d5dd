"""Envelopes on a stream of bytes, between a silo's carrier and its worker.

    4 bytes    length of the header, big-endian
    header     JSON: schema, direction, kind, fields and, where an array follows, its manifest, dtype and length
    array      its bytes

Every length is checked before anything is allocated for it, and nothing but JSON and numbers is read.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from silotune.errors import AdmissionError
from silotune.wire.codecs.interface import DTYPES
from silotune.wire.envelope import SCHEMA, Direction, Envelope
from silotune.wire.manifest import MAX_MANIFEST_BYTES, Manifest

MAX_HEADER = 2 * MAX_MANIFEST_BYTES
"""Bytes: a manifest's text is quoted in the header, and the longest field has 65,536 characters."""
PIECE = 1 << 20
"""Bytes that are read at a time: what is only claimed takes no memory."""
LENGTH = struct.Struct(">I")


class Source(Protocol):
    """What is read from."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read what is there, at most as much as there is room for; 0 at the end."""


@dataclass(frozen=True)
class Frame:
    """An envelope as it is written."""

    head: bytes
    array: memoryview

    @property
    def bytes(self) -> int:
        """Its length in bytes."""
        return len(self.head) + self.array.nbytes

    @property
    def sha256(self) -> str:
        """SHA-256 of all its bytes, hexadecimal."""
        digest = hashlib.sha256(self.head)
        digest.update(self.array)
        return digest.hexdigest()


def frame(envelope: Envelope) -> Frame:
    """Write an envelope; its array is not copied."""
    head: dict[str, object] = {
        "schema": SCHEMA, "direction": envelope.direction, "kind": envelope.kind, "fields": dict(envelope.fields),
    }  # fmt: skip
    array = memoryview(b"")
    if envelope.vector is not None and envelope.manifest is not None:
        whole = np.ascontiguousarray(envelope.vector)
        head |= {"manifest": envelope.manifest.to_json(), "dtype": whole.dtype.str, "bytes": whole.nbytes}
        array = whole.data.cast("B")
    text = json.dumps(head).encode()
    return Frame(LENGTH.pack(len(text)) + text, array)


class CutShortError(AdmissionError):
    """A stream ended before an envelope did."""


def read(source: Source, direction: Direction, most_bytes: int) -> Envelope:
    """Read one envelope.

    Args:
        source: to read from.
        direction: that it must have.
        most_bytes: of its array.

    Raises:
        AdmissionError: it is none, is cut short, or is larger than allowed.
        OSError: the stream fails, or nothing comes within its time.
    """
    (length,) = LENGTH.unpack(_exactly(source, LENGTH.size))
    if length > MAX_HEADER:
        raise AdmissionError(f"the header has {length} bytes, at most {MAX_HEADER} are taken")
    try:
        head = json.loads(bytes(_exactly(source, length)))
        if not isinstance(head, dict):
            raise ValueError("not an object")
        if head["schema"] != SCHEMA:
            raise AdmissionError(f"the envelope is not of schema {SCHEMA}: both sides need the same silotune")
        if head["direction"] != direction:
            raise AdmissionError(f"the envelope does not go {direction}")
        vector, manifest = None, None
        if "bytes" in head:
            dtype, size = np.dtype(DTYPES[DTYPES.index(head["dtype"])]), _size(head["bytes"], most_bytes)
            if size % dtype.itemsize:
                raise ValueError("not a whole number of numbers")
            manifest = Manifest.from_json(head["manifest"])
            vector = np.frombuffer(_exactly(source, size), dtype)
        return Envelope(direction, head["kind"], head["fields"], vector, manifest)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AdmissionError("the envelope cannot be read") from None


def _size(claimed: object, most_bytes: int) -> int:
    if not isinstance(claimed, int) or isinstance(claimed, bool) or claimed < 0:
        raise ValueError("not a size")
    if claimed > most_bytes:
        raise AdmissionError(f"the array has {claimed} bytes, at most {most_bytes} are taken")
    return claimed


def _exactly(source: Source, size: int) -> bytearray:
    """So many bytes.

    Raises:
        AdmissionError: the stream ends before.
    """
    found, piece = bytearray(), memoryview(bytearray(min(size, PIECE)))
    while len(found) < size:
        count = source.readinto(piece[: size - len(found)])
        if not count:
            raise CutShortError("the stream ended within an envelope")
        found += piece[:count]
    return found
