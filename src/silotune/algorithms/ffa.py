"""FFA-LoRA: A stays as it was drawn, and only B is trained and averaged.

Youbang Sun, Zitao Li, Yaliang Li, Bolin Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024,
arXiv 2403.12313. Here the rows of A are orthonormal up to a factor: A A^T = I / 3, which is what the A that PEFT draws
has on average, so that a learning rate means the same. FedSVD (NeurIPS 2025, arXiv 2505.12805) adds nothing to it under
SGD: the row space of B A is A's, so an SVD of the product only rotates A.

Guarantee. As every silo has the same A, averaging is exact: sum_k w_k B_k A = (sum_k w_k B_k) A, and e_agg is 0 but for
rounding. Neither side ever sends A: each draws it from the seed, to the same bits on every machine. The product stays
in the row space of A.
"""

import functools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from silotune.algorithms.interface import Method
from silotune.errors import ModelError
from silotune.model.adapter import AdapterSpec, initial_adapter
from silotune.model.algebra import ordered_sums

SCALE = 1 / np.sqrt(3.0)
"""Length of a row of A. The entries that PEFT draws are uniform in +-1/sqrt(d_in), which have variance 1 / (3 d_in)."""


@functools.lru_cache(maxsize=2)
def start(spec: AdapterSpec, seed: int) -> Mapping[str, NDArray[np.float32]]:
    """B = 0, and the rows of FedAvg's first A made orthogonal and of length `SCALE`. Not to be changed.

    Raises:
        ModelError: a module has fewer inputs than the adapter's rank, so that there are no such rows.
    """
    adapter = initial_adapter(spec, seed)
    for module, name, _ in spec.pairs():
        rank, width = adapter[name].shape
        if rank > width:
            raise ModelError(
                f'federation.algorithm = "ffa": lora.r is {rank} and {module} has {width} inputs; as many rows cannot '
                "be orthogonal. Lower lora.r."
            )
        adapter[name] = (orthonormal_rows(adapter[name].astype(np.float64)) * SCALE).astype(np.float32)
    for value in adapter.values():
        value.setflags(write=False)
    return adapter


def orthonormal_rows(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gram-Schmidt on the rows of a matrix (r, n) of full rank, r <= n, each row twice.

    A QR of LAPACK's would round otherwise on another processor; so every sum is an `ordered_sums`.
    """
    rows = np.zeros_like(matrix)
    for number, row in enumerate(matrix):
        done = rows[:number]
        for _ in range(2):  # twice is enough: Giraud, Langou, Rozložník, van den Eshof, Numer. Math. 101 (2005)
            for share, before in zip(ordered_sums(done * row), done, strict=True):
                row = row - share * before
        rows[number] = row / np.sqrt(ordered_sums(row[None] * row[None]))
    return rows


def trainable(spec: AdapterSpec, round_: int) -> frozenset[str]:
    """B, whatever the round."""
    del round_
    return spec.with_role("B")


def seeded(spec: AdapterSpec) -> frozenset[str]:
    """A."""
    return spec.with_role("A")


METHOD = Method("ffa", start, trainable, seeded)
