"""Numbers as they are: four bytes each."""

import numpy as np
from numpy.typing import NDArray

from silotune.wire.codecs.interface import Codec, Draw, Vector


def encode(vector: Vector, draw: Draw) -> NDArray[np.float32]:
    """The vector, little-endian."""
    del draw
    return np.ascontiguousarray(vector, "<f4")


def decode(array: NDArray[np.float32], count: int) -> Vector:
    """The vector, without a copy where it can be had."""
    del count
    return np.ascontiguousarray(array, np.float32)


CODEC = Codec("float32", "<f4", lambda count: count, encode, decode, lossless=True)
