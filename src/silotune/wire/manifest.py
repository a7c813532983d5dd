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

VERSION = 1
CODEC = "float32"
MAX_MANIFEST_BYTES = 4 << 20
MAX_MAGNITUDE = 2.0**7
"""Largest absolute value of a number that is accepted; also what the exact sum of updates has room for."""


@dataclass(frozen=True)
class Manifest:
    """What the one array is: its tensors in order, its codec and its digest."""

    spec: AdapterSpec
    codec: str
    sha256: str
    """Of the array's bytes (little-endian float32)."""

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
                (str(name), tuple(_dimension(size) for size in shape)) for name, shape in document["tensors"]
            )
            return cls(AdapterSpec(shapes), str(document["codec"]), str(document["sha256"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AdmissionError("the manifest cannot be read") from None


def _dimension(size: object) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 2**31:
        raise ValueError("not a dimension")
    return size


def pack(adapter: AdapterState) -> tuple[NDArray[np.float32], Manifest]:
    """Flatten an adapter into (vector of float32, its manifest)."""
    vector = np.ascontiguousarray(flatten(adapter), "<f4")
    return vector, Manifest(AdapterSpec.of(adapter), CODEC, hashlib.sha256(vector.tobytes()).hexdigest())


def unpack(vector: NDArray[np.generic], manifest: Manifest, expected: AdapterSpec) -> dict[str, NDArray[np.float32]]:
    """Return the adapter in `vector`, if it is one that may be used.

    Raises:
        AdmissionError: wrong codec, names, shapes, dtype, size or digest, or numbers that are not finite or absurd.
    """
    if manifest.codec != CODEC:
        raise AdmissionError(f"unknown codec {manifest.codec[:40]!r}")
    if manifest.spec != expected:
        raise AdmissionError(manifest.spec.difference(expected))
    if vector.dtype != np.dtype("<f4"):
        raise AdmissionError(f"the array is of dtype {vector.dtype}, expected float32")
    if vector.shape != (expected.size,):
        raise AdmissionError(f"the array has shape {vector.shape}, expected ({expected.size},)")
    # Nothing below copies: an array may be as large as the server's memory bears.
    floats: NDArray[np.float32] = np.ascontiguousarray(vector, np.float32)
    if hashlib.sha256(floats.data).hexdigest() != manifest.sha256:
        raise AdmissionError("the array's digest is not the manifest's: it was changed on its way")
    low, high = (float(floats.min()), float(floats.max())) if floats.size else (0.0, 0.0)
    if math.isnan(low):
        raise AdmissionError("the array holds NaN")
    if math.isinf(low) or math.isinf(high):
        raise AdmissionError("the array holds infinite numbers")
    if max(-low, high) > MAX_MAGNITUDE:
        raise AdmissionError(f"the array holds a number beyond {MAX_MAGNITUDE:g}")
    return unflatten(floats, expected)
