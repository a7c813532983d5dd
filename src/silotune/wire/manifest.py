"""An adapter as one array and a manifest that says what it is.

One array and not one a tensor: on Flower's wire every array is an object of its own with its own request.
"""

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from silotune.errors import AdmissionError
from silotune.model.adapter import AdapterSpec, AdapterState, flatten, unflatten
from silotune.wire.codecs.interface import Codec, Draw

VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20
MAX_MAGNITUDE = 2.0**7
"""Largest absolute value of a number that is accepted; also what the exact sum of updates has room for."""
MOST_ADAPTER = MOST_UPDATE = MAX_MAGNITUDE / 2
"""Largest absolute values of the adapter, to which the server brings it back, and of an update: a silo that starts from
the one and adds the other stays within what is accepted, whatever others have sent."""


@dataclass(frozen=True)
class Manifest:
    """What the one array is: its tensors in order, its codec and its digest."""

    spec: AdapterSpec
    codec: str
    sha256: str
    """SHA-256 of the array's bytes."""

    def to_json(self) -> str:
        """Write as JSON."""
        tensors = [[name, list(shape)] for name, shape in self.spec.shapes]
        return json.dumps({"version": VERSION, "codec": self.codec, "sha256": self.sha256, "tensors": tensors})

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read what `to_json` wrote.

        Raises:
            AdmissionError: anything else.
        """
        if len(text) > MAX_MANIFEST_BYTES:
            raise AdmissionError(f"the manifest is larger than {MAX_MANIFEST_BYTES} bytes")
        try:
            document = json.loads(text)
            if document["version"] != VERSION:
                raise AdmissionError(f"the manifest is of version {document['version']}, this is version {VERSION}")
            shapes = tuple(
                (_word(name), tuple(_dimension(size) for size in shape)) for name, shape in document["tensors"]
            )
            return cls(AdapterSpec(shapes), _word(document["codec"]), _word(document["sha256"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AdmissionError("the manifest cannot be read") from None


def _word(text: object) -> str:
    """Text that may be shown and written down: half a surrogate pair, say, has no bytes in UTF-8."""
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError("not a word")
    return text


def _dimension(size: object) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 2**31:
        raise ValueError("not a dimension")
    return size


def pack(adapter: AdapterState, codec: Codec, draw: Draw = None) -> tuple[NDArray[np.generic], Manifest]:
    """Write an adapter, or a part of one, as (the array that travels, its manifest).

    Args:
        adapter: to write.
        codec: of its numbers.
        draw: what an update's rounding is drawn with; None: to the nearest.
    """
    array = codec.encode(flatten(adapter), draw)
    return array, Manifest(AdapterSpec.of(adapter), codec.name, hashlib.sha256(array.data).hexdigest())


def unpack(
    array: NDArray[np.generic], manifest: Manifest, expected: AdapterSpec, codec: Codec
) -> dict[str, NDArray[np.float32]]:
    """Return the adapter in `array`, if it is one that may be used.

    Args:
        array: that travelled.
        manifest: that came with it.
        expected: names and shapes that it must have.
        codec: that it must be written in.

    Raises:
        AdmissionError: wrong codec, names, shapes, dtype, size or digest, or numbers that are not finite or absurd.
    """
    if manifest.codec != codec.name:
        raise AdmissionError(f"its codec is {manifest.codec[:40]!r}, and that of this run {codec.name}")
    if manifest.spec != expected:
        raise AdmissionError(manifest.spec.difference(expected))
    if array.dtype != np.dtype(codec.dtype):
        raise AdmissionError(f"the array is of dtype {array.dtype}, expected {np.dtype(codec.dtype)}")
    if array.shape != (codec.length(expected.size),):
        raise AdmissionError(f"the array has shape {array.shape}, expected ({codec.length(expected.size)},)")
    # Nothing before the decoding copies: an array may be as large as the server's memory bears.
    whole = np.ascontiguousarray(array)
    if hashlib.sha256(whole.data).hexdigest() != manifest.sha256:
        raise AdmissionError("the array's digest is not the manifest's: it was changed on its way")
    try:
        numbers = codec.decode(whole, expected.size)
    except ValueError as error:
        raise AdmissionError(f"the array is not of codec {codec.name}: {error}") from None
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    if math.isnan(low):
        raise AdmissionError("the array holds NaN")
    if math.isinf(low) or math.isinf(high):
        raise AdmissionError("the array holds infinite numbers")
    if max(-low, high) > MAX_MAGNITUDE:
        raise AdmissionError(f"the array holds a number beyond {MAX_MAGNITUDE:g}")
    return unflatten(numbers, expected)


def rounded(adapter: AdapterState, codec: Codec) -> dict[str, NDArray[np.float32]]:
    """What an adapter is after it has travelled, to the nearest."""
    spec = AdapterSpec.of(adapter)
    return unflatten(codec.decode(codec.encode(flatten(adapter), None), spec.size), spec)
