"""Algebra of products B A without ever forming them: their norms, and the aggregation error.

Notation: an adapted layer adds s B A x with A (r, d_in), B (d_out, r). The scaling s is the same for all silos of
a run and cancels in every ratio here.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from silotune.model.adapter import AdapterSpec, AdapterState

Matrix = NDArray[np.float64]


def ordered_sums(values: Matrix) -> Matrix:
    """Sums of the rows of a matrix (rows, n), to the same bits on every machine: halves are added until one is left.

    A library's own sum takes another order on another processor. Here IEEE's rules alone decide each bit.
    """
    size = 1 << (values.shape[1] - 1).bit_length()
    padded = np.zeros((len(values), size))
    padded[:, : values.shape[1]] = values
    while size > 1:
        size //= 2
        padded = padded[:, :size] + padded[:, size:]
    return padded[:, 0]


def squared_norm(terms: Sequence[tuple[float, Matrix, Matrix]]) -> float:
    """||sum_i c_i B_i A_i||_F^2 for terms (c_i, B_i, A_i).

    The factors are stacked, so the cost is one QR of each stack: O((d_in + d_out)(sum r_i)^2). QR and not Grams,
    because differences of nearly equal products would lose half their digits in squares.
    """
    tall = np.concatenate([c * b for c, b, _ in terms], axis=1)
    wide = np.concatenate([a for _, _, a in terms], axis=0)
    left: Matrix = np.linalg.qr(tall, mode="r")  # type: ignore[assignment]  # NumPy's stub ignores the mode
    right: Matrix = np.linalg.qr(wide.T, mode="r")  # type: ignore[assignment]
    return float(np.sum((left @ right.T) ** 2))


def aggregation_error(start: AdapterState, locals_: Sequence[AdapterState], weights: Sequence[float]) -> float:
    """e_agg: what averaging A and B apart leaves out, as a share of what the silos changed.

    With weights w_k that sum to 1 and bars for weighted means, per layer
        E = sum_k w_k B_k A_k - Bbar Abar = sum_k w_k (B_k - Bbar)(A_k - Abar),
    and e_agg = ||E||_F / ||sum_k w_k B_k A_k - B_0 A_0||_F over all layers together. It is 0 with one silo, or where
    all silos share a factor, and falls with the square of the drift between silos.

    Args:
        start: the adapter that the silos started from (A_0, B_0).
        locals_: each silo's adapter after its local training.
        weights: of the silos; normalised here.
    """
    shares = np.asarray(weights, np.float64) / np.sum(np.asarray(weights, np.float64))
    error = change = 0.0
    for _, name_a, name_b in AdapterSpec.of(start).pairs():
        start_a, start_b = (np.asarray(start[name], np.float64) for name in (name_a, name_b))
        a = [np.asarray(adapter[name_a], np.float64) for adapter in locals_]
        b = [np.asarray(adapter[name_b], np.float64) for adapter in locals_]
        mean_a = np.tensordot(shares, np.stack(a), 1)
        mean_b = np.tensordot(shares, np.stack(b), 1)
        silos = list(zip(shares, a, b, strict=True))
        error += squared_norm([(w, bk - mean_b, ak - mean_a) for w, ak, bk in silos])
        # sum w B_k A_k - B_0 A_0 in differences only: products of unchanged factors must cancel to the last bit.
        moved_a = sum((w * (ak - start_a) for w, ak, _ in silos), np.zeros_like(start_a))
        change += squared_norm([*((w, bk - start_b, ak) for w, ak, bk in silos), (1.0, start_b, moved_a)])
    return float(np.sqrt(error / change)) if change > 0 else 0.0
