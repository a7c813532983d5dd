"""How sure a figure is: an interval over seeds, an interval over test rows, and where a curve changes its sign."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from silotune.data.seeds import derive

LEVEL = 0.95
"""Confidence level of every interval."""
RESAMPLES = 2000
Interval = tuple[float, float]


def t_interval(values: Sequence[float]) -> Interval | None:
    """Student's interval for the mean of independent values (one a seed): mean +- t(n - 1) s / sqrt(n).

    Student, "The probable error of a mean", Biometrika 6, 1908. Exact where the values are normal. None for one value.
    """
    count = len(values)
    if count < 2:
        return None
    from scipy.stats import t

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * deviation / math.sqrt(count)
    return mean - half, mean + half


def bootstrap(loss: Sequence[NDArray[np.float64]], tokens: Sequence[NDArray[np.int64]], seed: int) -> Interval:
    """Interval for a mean difference of two models over test rows, drawn again with replacement, in pairs.

    Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979 (percentile interval);
    pairs keep what is hard about a row for both models: Koehn, "Statistical significance tests for machine
    translation evaluation", EMNLP 2004.

    Args:
        loss: of each group of rows (rows,), each row's difference of summed losses in nats. Rows are drawn within
            their group; the figure is the mean over groups of the difference a token.
        tokens: (rows,) of each group: tokens that the losses are sums over.
        seed: of the draws.
    """
    random = np.random.default_rng(derive(seed, "bootstrap"))
    means = np.zeros(RESAMPLES)
    for differences, counts in zip(loss, tokens, strict=True):
        size = len(differences)
        for number in range(RESAMPLES):
            drawn = random.integers(size, size=size)
            means[number] += differences[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means / len(loss), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def crossover(points: Sequence[tuple[int, float]]) -> float | None:
    """Where a curve over row counts first changes its sign, on straight lines over the logarithm; None: nowhere.

    Args:
        points: (rows, value).
    """
    ordered = sorted(points)
    for (low, before), (high, after) in itertools.pairwise(ordered):
        if (before > 0) != (after > 0):
            share = before / (before - after)
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None
