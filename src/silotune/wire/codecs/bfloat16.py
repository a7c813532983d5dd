"""The upper half of each float32, rounded to nearest even: two bytes per number.

Guarantee. A number x that is no subnormal becomes one within 2^-8 |x|. A silo sends what an adapter changed by, so what
is lost of that is relative to the change.
"""

import numpy as np
from numpy.typing import NDArray

from silotune.wire.codecs.interface import Codec, Draw, Vector

NAN = np.uint16(0x7FC0)


def encode(vector: Vector, draw: Draw) -> NDArray[np.uint16]:
    """Round to nearest even; a NaN stays one."""
    del draw
    bits = np.ascontiguousarray(vector, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    with np.errstate(over="ignore"):  # of a NaN's bits only
        upper = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2")
    upper[np.isnan(vector)] = NAN
    return upper


def decode(array: NDArray[np.uint16], count: int) -> Vector:
    """The numbers, whose lower halves are 0."""
    del count
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)


CODEC = Codec("bfloat16", "<u2", lambda count: count, encode, decode)
