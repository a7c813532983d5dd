"""Blocks of 64 numbers, each a whole number of steps of its block's own scale: 1.06 bytes per number.

The scale is the largest absolute value of the block over 127, rounded up to 16 bits of mantissa: then every step times
its scale is a float32 exactly, and what has been rounded to the nearest comes back to the bit when it is again. What
the server sends is rounded so. A silo's update is rounded up or down by a draw from the run's seed, so that it is right
on average (Dan Alistarh et al., "QSGD", NeurIPS 2017, arXiv 1610.02132); and what was lost is added to the silo's next
update (Sai Praneeth Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML
2019, arXiv 1901.09847).

Guarantee. With steps of size s in a block, |x - Q(x)| <= s/2 to the nearest and <= s where it is drawn, and then
E Q(x) = x but for a float32's own rounding. With u_t a silo's updates and e_t what it keeps, sum_t Q(u_t + e_t-1) =
sum_t u_t - e_T: nothing is lost over the rounds to which its updates count. Blocks of subnormal numbers alone (below
1.2e-38) are outside of this.
"""

import numpy as np
from numpy.typing import NDArray

from silotune.wire.codecs.interface import Codec, Draw, Vector

BLOCK = 64
MOST = 127
"""Steps on each side of 0."""


def length(count: int) -> int:
    """One byte per number, and four per block."""
    return count + 4 * _blocks(count)


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def encode(vector: Vector, draw: Draw) -> NDArray[np.uint8]:
    """The steps of all numbers, then the scales of all blocks."""
    count, blocks = len(vector), _blocks(len(vector))
    padded = np.zeros(blocks * BLOCK, np.float32)
    padded[:count] = vector
    values = padded.reshape(blocks, BLOCK)
    exact = np.abs(values).max(axis=1, initial=0) / np.float32(MOST)
    exact[np.isnan(exact)] = np.nan  # of which the bits below are 0
    scales = ((exact.view(np.uint32) + np.uint32(0xFF)) & np.uint32(0xFFFFFF00)).view(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values /= scales[:, None]
        if draw is not None:
            values += draw.random(values.shape, dtype=np.float32)
        values = np.floor(values, out=values) if draw is not None else np.rint(values, out=values)
    values[~((scales > 0) & np.isfinite(scales))] = 0  # nothing but zeros, or numbers that are none: the scale says so
    steps = np.clip(values, -MOST, MOST, out=values).astype(np.int8).reshape(-1)[:count]
    return np.concatenate([steps.view(np.uint8), scales.astype("<f4").view(np.uint8)])


def decode(array: NDArray[np.uint8], count: int) -> Vector:
    """Steps times scales.

    Raises:
        ValueError: a step of -128, or a scale that is below 0 or has more bits.
    """
    steps, scales = array[:count].view(np.int8), array[count:].copy().view("<f4").astype(np.float32)
    odd = (scales < 0) | ((scales.view(np.uint32) & np.uint32(0xFF)) != 0)
    if count and (int(steps.min()) < -MOST or bool(odd.any())):
        raise ValueError("a step or a scale that is never written")
    padded = np.zeros(_blocks(count) * BLOCK, np.float32)
    padded[:count] = steps
    values = padded.reshape(-1, BLOCK)
    with np.errstate(invalid="ignore"):  # an infinite scale: refused by whoever reads the numbers
        values *= scales[:, None]
    return padded[:count]


CODEC = Codec("int8", "|u1", length, encode, decode, feedback=True)
