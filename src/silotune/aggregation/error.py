"""The aggregation error of a round, measured as updates arrive.

Small cohorts: the updates are kept and the error is exact. Larger ones: every product is seen through the same
random matrix, which needs one accumulator whatever the number of silos.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from silotune.aggregation.interface import Contribution, Round
from silotune.aggregation.summation import LIMIT, ExactMean
from silotune.data.seeds import derive
from silotune.model.adapter import AdapterSpec, AdapterState
from silotune.model.algebra import aggregation_error

KEEP_BYTES = 256 << 20
"""Updates are kept, for the exact error, while the whole cohort's fit into this."""
PROBES = 32
"""Columns of the random matrices."""
NONE: AdapterState = {}
"""An update of nothing."""
SEEN_LIMIT = LIMIT / 2
"""Products below this can be summed, rounded to float32 as well."""


class ErrorMeter:
    """e_agg of `model.algebra.aggregation_error` over a stream of contributions, in any order to the same bits.

    Exact up to `KEEP_BYTES` of updates. Beyond, with Psi (d_out, 32) and Omega (d_in, 32) normal of variance 1 / 32,
    ||Psi^T M Omega||_F^2 has mean ||M||_F^2 and a relative standard deviation of at most about 36 % (M of rank one;
    less for others), so the reported ratio is within some 18 %. There it is unknown (None) once a product seen that
    way is too large to be summed exactly: factors have run away, and a diagnosis must not end the run.

    Unknown as well for adapters with magnitudes: DoRA divides by the norms of W + s B A, so what its mean leaves out
    depends on all weights of the base, and neither the factors nor their products say it.
    """

    def __init__(self, round_: Round) -> None:
        """Prepare for the updates of a round."""
        spec, cohort = AdapterSpec.of(round_.adapter), round_.cohort
        self._start = round_.adapter
        self._pairs = list(spec.pairs())
        products = not spec.with_role("magnitude")
        small = round_.payload.size * 4 * len(cohort.weights) <= KEEP_BYTES
        self._kept: dict[str, Contribution] | None = {} if products and small else None
        size = len(self._pairs) * PROBES**2
        self._seen = ExactMean(size, cohort.total) if products and not small else None

    def add(self, contribution: Contribution) -> None:
        """Take a contribution into account."""
        if self._kept is not None:
            self._kept[contribution.silo] = contribution
        elif self._seen is not None:
            products = self._look(contribution.update)
            if products.min() > -SEEN_LIMIT and products.max() < SEEN_LIMIT:
                self._seen.add(products.astype(np.float32), contribution.weight)
            else:
                self._seen = None

    def value(self, mean: AdapterState) -> float | None:
        """The error, given the weighted mean of the updates; None if it is unknown."""
        if self._kept is not None:
            ordered = [self._kept[name] for name in sorted(self._kept)]
            moved = [self._moved(contribution.update) for contribution in ordered]
            return aggregation_error(self._start, moved, [contribution.weight for contribution in ordered])
        if self._seen is None:
            return None
        products = self._seen.mean().astype(np.float64)
        before = self._look()
        change = float(np.sum((products - before) ** 2))
        error = float(np.sum((products - self._look(mean)) ** 2))
        # Products are seen in float32: a change below that is none.
        return float(np.sqrt(error / change)) if change > 1e-12 * float(np.sum(before**2)) else 0.0

    def _moved(self, update: AdapterState) -> dict[str, NDArray[np.float32]]:
        return {name: value + update[name] if name in update else value for name, value in self._start.items()}

    def _look(self, update: AdapterState = NONE) -> NDArray[np.float64]:
        """Psi B A Omega of every layer, flat, after an update."""
        seen = np.empty((len(self._pairs), PROBES, PROBES))
        for number, (_, name_a, name_b) in enumerate(self._pairs):
            factor_a, factor_b = (
                (self._start[name] + update[name] if name in update else self._start[name]).astype(np.float64)
                for name in (name_a, name_b)
            )
            seen_b, seen_a = _probe("out", len(factor_b)).T @ factor_b, factor_a @ _probe("in", factor_a.shape[1])
            np.matmul(seen_b, seen_a, out=seen[number])
        return seen.reshape(-1)


@functools.lru_cache(maxsize=64)
def _probe(side: str, width: int) -> NDArray[np.float64]:
    """(width, PROBES) independent normal numbers of variance 1 / PROBES, the same in every round and process."""
    drawn: NDArray[np.float64] = np.random.default_rng(derive(width, side)).standard_normal((width, PROBES))
    return drawn / np.float64(np.sqrt(PROBES))
