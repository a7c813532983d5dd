"""Sums that are the same to the bit in any order of arrival, with one accumulator whatever the number of silos.

Floating-point addition is not associative, so a plain running sum would depend on which silo answers first.
Integer addition is: each weighted update is rounded once to a multiple of 2^-45 and added as an integer of 56 bits.
Those take 7 bytes a number, so that the sum and the update that is being added stay below three times an update.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 45
LIMIT = 2.0 ** (54 - FRACTION_BITS)
"""Every |x| that is added must be below this; shares sum to at most 1, so the sum cannot overflow."""
CHUNK = 1 << 18
"""Numbers that are converted at a time."""


class ExactMean:
    """A weighted mean of vectors, accumulated in fixed point.

    Guarantee: for any order of `add`, and any grouping of the silos over time, `mean` returns the same bits. Each
    vector is rounded to multiples of 2^-45 (2.8e-14) times the inverse of the arrived share of weight, far below
    float32's own step at the size of LoRA updates; the mean is then rounded to float32 once.
    """

    def __init__(self, size: int, total_weight: int) -> None:
        """Start at 0.

        Args:
            size: numbers in a vector.
            total_weight: of all that may be added; must be known beforehand and not depend on who arrives.
        """
        if total_weight < 1:
            raise ValueError("total_weight must be at least 1")
        self._high = np.zeros(size, np.int32)
        self._middle = np.zeros(size, np.uint16)
        self._low = np.zeros(size, np.uint8)
        self._total = total_weight
        self._arrived = 0

    def add(self, vector: NDArray[np.float32], weight: int) -> None:
        """Add a vector (size,) with a positive integer weight; see `add_parts`."""
        if vector.shape != self._high.shape:
            raise ValueError(f"expected shape {self._high.shape}, got {vector.shape}")
        self.add_parts([vector], weight)

    def add_parts(self, parts: Sequence[NDArray[np.float32]], weight: int) -> None:
        """Add a vector that lies in pieces, in any shapes, one after another; it is not copied.

        Raises:
            ValueError: weight below 1 or more than announced in all, or a number that is not finite or too large;
                nothing was added then.
        """
        if weight < 1 or self._arrived + weight > self._total:
            raise ValueError("weight below 1, or more weight than was announced")
        if sum(part.size for part in parts) != self._high.size:
            raise ValueError(f"expected {self._high.size} numbers, got {sum(part.size for part in parts)}")
        if not all(bool(np.all(np.abs(piece) < LIMIT)) for _, piece in _pieces(parts)):
            raise ValueError(f"a number is not finite or not below {LIMIT:g}")
        scale = weight / self._total * 2.0**FRACTION_BITS
        for start, piece in _pieces(parts):
            part = slice(start, start + piece.size)
            total = self._sum(part) + np.rint(piece.astype(np.float64) * scale).astype(np.int64)
            self._high[part], self._middle[part], self._low[part] = total >> 24, (total >> 8) & 0xFFFF, total & 0xFF
        self._arrived += weight

    def mean(self) -> NDArray[np.float32]:
        """The weighted mean of what was added, float32 (size,).

        Raises:
            ValueError: nothing was added.
        """
        if not self._arrived:
            raise ValueError("nothing was added")
        scale = self._total / self._arrived * 2.0**-FRACTION_BITS
        result = np.empty(self._high.shape, np.float32)
        for start in range(0, result.size, CHUNK):
            part = slice(start, start + CHUNK)
            result[part] = self._sum(part) * scale
        return result

    def _sum(self, part: slice) -> NDArray[np.int64]:
        high, middle, low = (plane[part].astype(np.int64) for plane in (self._high, self._middle, self._low))
        return (high << 24) + (middle << 8) + low


def _pieces(parts: Sequence[NDArray[np.float32]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (position in the whole, numbers) of so many numbers at most."""
    position = 0
    for part in parts:
        flat = part.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            yield position + start, flat[start : start + CHUNK]
        position += flat.size
