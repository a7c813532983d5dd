"""What a codec is: how a vector of float32 becomes the one array that travels, and back.

A new codec is a new file that defines `CODEC`, a `Codec` of the file's own name, and an entry in `settings.CodecName`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = ("<f4", "<u2", "|u1")
"""That the array of a codec may have."""
Vector = NDArray[np.float32]
Draw = np.random.Generator | None
"""What an update's rounding is drawn with; None rounds to the nearest, as for an adapter that is sent down."""


@dataclass(frozen=True)
class Codec:
    """A codec, as plain functions. Encoding gives the same bits on every machine.

    What it loses of a silo's update is kept by the silo and added to its next one, if `feedback`; what it loses of the
    server's adapter is kept by the server always.
    """

    name: str
    dtype: str
    """Dtype of the array that travels, as NumPy writes it."""
    length: Callable[[int], int]
    """Elements of that array, for so many numbers."""
    encode: Callable[[Vector, Draw], NDArray[np.generic]]
    """Numbers that are not finite give an array that does not decode to finite ones."""
    decode: Callable[[NDArray[Any], int], Vector]
    """(array of `dtype` and `length(count)`, count) -> vector (count,). Raises ValueError for what is never encoded."""
    lossless: bool = False
    feedback: bool = False

    def bytes(self, count: int) -> int:
        """Bytes of the array for a count of numbers."""
        return self.length(count) * np.dtype(self.dtype).itemsize
