"""Between envelopes and Flower's messages, and what a message weighs when serialised."""

import io

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from numpy.typing import NDArray

from silotune.errors import AdmissionError
from silotune.privacy.ledger import Entry
from silotune.wire.codecs.interface import DTYPES
from silotune.wire.envelope import SCHEMA, Direction, Envelope, Kind
from silotune.wire.manifest import Manifest

VERSION, FIELDS, MANIFEST = "silotune.schema", "silotune.fields", "silotune.manifest"
ADAPTER, ARRAY = "silotune.adapter", "adapter"

TYPES: dict[Kind, str] = {"join": "query", "train": "train", "evaluate": "evaluate", "alone": "train.alone"}
"""Flower's message type for each kind."""

NPY_HEADER_BYTES = 4096
"""More than NumPy's file header ever takes, in bytes."""


def content(envelope: Envelope) -> RecordDict:
    """Write an envelope as the content of a Flower message."""
    records = RecordDict({VERSION: ConfigRecord({"version": SCHEMA}), FIELDS: ConfigRecord(dict(envelope.fields))})
    if envelope.vector is not None and envelope.manifest is not None:
        records[ADAPTER] = ArrayRecord({ARRAY: Array(envelope.vector)})
        records[MANIFEST] = ConfigRecord({"json": envelope.manifest.to_json()})
    return records


def envelope(message: Message, direction: Direction, kind: Kind, most_bytes: int) -> Envelope:
    """Read the content of a Flower message; sizes are checked before anything is allocated.

    Args:
        message: with content.
        direction: that it came from.
        kind: that it must be of.
        most_bytes: of its array.

    Raises:
        AdmissionError: not what the schema allows.
    """
    records = message.content
    version = records.get(VERSION)
    if not isinstance(version, ConfigRecord) or version.get("version") != SCHEMA:
        raise AdmissionError(f"the message is not of schema {SCHEMA}: both sides need the same release of silotune")
    if not set(records) <= {VERSION, FIELDS, ADAPTER, MANIFEST} or FIELDS not in records:
        raise AdmissionError("the message has records that are not of this schema")
    fields = records[FIELDS]
    if not isinstance(fields, ConfigRecord):
        raise AdmissionError("the message's fields are of the wrong type")
    if ADAPTER not in records:
        return Envelope(direction, kind, dict(fields))  # type: ignore[arg-type]
    arrays, manifest = records[ADAPTER], records.get(MANIFEST)
    if not isinstance(arrays, ArrayRecord) or list(arrays) != [ARRAY] or not isinstance(manifest, ConfigRecord):
        raise AdmissionError("the adapter must be one array with its manifest")
    array = arrays[ARRAY]
    if array.stype != "numpy.ndarray":
        raise AdmissionError("the array is not one of NumPy's")
    if len(array.data) > most_bytes + NPY_HEADER_BYTES:
        raise AdmissionError(f"the array has {len(array.data)} bytes, at most {most_bytes} are expected")
    vector = _vector(array.data)
    text = manifest.get("json")
    if not isinstance(text, str):
        raise AdmissionError("the manifest is missing")
    return Envelope(direction, kind, dict(fields), vector, Manifest.from_json(text))  # type: ignore[arg-type]


def _vector(data: bytes) -> NDArray[np.generic]:
    """The vector in a NumPy file, as a view of its bytes: nothing is allocated for what its header claims.

    Raises:
        AdmissionError: no such file, or its header and its bytes do not agree.
    """
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("a header of another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception:  # what a header can raise depends on what it says
        raise AdmissionError("the array cannot be read") from None
    left = len(data) - stream.tell()
    if dtype.str not in DTYPES or shape != (left // dtype.itemsize,) or left % dtype.itemsize:
        raise AdmissionError("the array's header does not describe its bytes as a vector of numbers that are sent")
    return np.frombuffer(data, dtype, offset=stream.tell())


Weight = tuple[int, str]
"""Bytes of every object of a content's tree as Flower serialises it, and the SHA-256 of the whole."""


hashed_once = no_object_id_recompute
"""While it lasts, an object that does not change is hashed once; else anew for every one above it and every message."""


def weigh(records: RecordDict) -> Weight:
    """Serialise a content, object by object."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(records).values()), records.object_id


def ledger_entry(opened: Envelope, message: Message, silo: str, round_: int, weight: Weight | None = None) -> Entry:
    """Describe a message as it is serialised.

    Args:
        opened: what it says.
        message: to describe.
        silo: that it goes to, or comes from.
        round_: that it belongs to.
        weight: of its content, where that is known because it goes to others too.
    """
    size, digest = _weighed(message, weight)
    tensors = opened.manifest.spec.shapes if opened.manifest else ()
    dtype = opened.manifest.codec if opened.manifest else None
    return Entry(opened.direction, silo, opened.kind, round_, tensors, dtype, opened.fields, size, digest)


def refused_entry(message: Message | None, kind: Kind, silo: str, round_: int, reason: str) -> Entry:
    """Describe an answer that was not admissible: its weight and why, nothing of what it claims to hold.

    One that cannot even be weighed, or was lost as it was read, has the weight 0.
    """
    try:
        size, digest = _weighed(message) if message is not None else (0, "")
    except Exception:  # of a silo that may send whatever it likes
        size, digest = 0, ""
    return Entry("up", silo, kind, round_, (), None, {"inadmissible": reason}, size, digest)


def _weighed(message: Message, weight: Weight | None = None) -> Weight:
    size, digest = weight or weigh(message.content)
    return size + len(message.deflate()), digest
