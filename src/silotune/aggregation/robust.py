"""Aggregation that a few hostile silos cannot own: norms clipped at the cohort's median, and trimmed means.

Both bound what hostile silos can do; neither finds them out. With a handful of silos, rules that leave whole updates
out mostly leave out honest ones, so there are none here.

`clip`. Each update's norm (over all its numbers) is brought down to the median norm m of the updates that arrived.
    Guarantee. If hostile silos hold the share h of the weight that arrived, the result is within 2 h m of what the
    honest updates come to by themselves, clipped at the same m. As long as fewer than half of the silos are hostile, m
    is no larger than the largest honest norm. Ziteng Sun, Peter Kairouz, Ananda Theertha Suresh, H. Brendan McMahan,
    "Can You Really Backdoor Federated Learning?", arXiv 1911.07963.

`trimmed`. For each number apart, the floor(trim K) largest and smallest of the K values are left out, and the mean of
    the rest is taken; all silos weigh the same. Guarantee. With at most floor(trim K) hostile silos, each number lies
    between the smallest and the largest honest value. Dong Yin, Yudong Chen, Kannan Ramchandran, Peter Bartlett,
    "Byzantine-Robust Distributed Learning", ICML 2018, arXiv 1803.01498. Only where a round trains one factor: of two,
    (B G, G^-1 A) has the same product for any G, so that numbers far apart may mean the same, and the reverse.

Updates lie on the disk until all have arrived. Both give the same bits in any order of arrival.
"""

from collections.abc import Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from silotune.aggregation.interface import Aggregate, Ask, Collector, Contribution, Round
from silotune.aggregation.mean import averaged
from silotune.aggregation.spool import spooled
from silotune.model.adapter import AdapterSpec, unflatten


def clip(round_: Round) -> Generator[Ask, Iterator[Contribution], Aggregate | None]:
    """The weighted mean of updates whose norms are clipped at their median."""
    spec = AdapterSpec.of(round_.adapter).only(round_.trainable)
    with spooled(spec, (yield Ask("train"))) as spool:
        if not spool.norms:
            return None
        median = float(np.median(list(spool.norms.values())))
        scale = {silo: min(1.0, median / norm) if norm > 0 else 1.0 for silo, norm in spool.norms.items()}
        return averaged(round_, spool.contributions(scale))


def trimmed(share: float) -> Collector:
    """The trimmed mean of each number, with this share of the values left out on each side."""

    def collector(round_: Round) -> Generator[Ask, Iterator[Contribution], Aggregate | None]:
        spec = AdapterSpec.of(round_.adapter).only(round_.trainable)
        with spooled(spec, (yield Ask("train"))) as spool:
            if not spool.weights:
                return None
            update = np.concatenate([trimmed_mean(values, share) for values in spool.chunks()])
        return Aggregate(unflatten(update, spec), None, tuple(sorted(spool.weights)))

    return collector


def trimmed_mean(values: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """The trimmed mean over K silos, (K, numbers) to (numbers,), summed from the smallest to the largest."""
    count = len(values)
    left_out = min(int(share * count + 1e-9), (count - 1) // 2)
    total = np.zeros(values.shape[1])
    for value in np.sort(values, axis=0)[left_out : count - left_out]:
        total += value
    return (total / (count - 2 * left_out)).astype(np.float32)
