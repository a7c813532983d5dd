"""Intervals against tables and formulas; where a curve changes its sign."""

import numpy as np
import pytest

from silotune.compare.statistics import bootstrap, crossover, t_interval


def test_students_interval():
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48413, 2 + 2.48413), rel=1e-4)
    assert t_interval([0.0, 1.0]) == pytest.approx((0.5 - 12.7062 / 2, 0.5 + 12.7062 / 2), rel=1e-4)
    assert t_interval([1.0]) is None and t_interval([2.0, 2.0]) == (2.0, 2.0)


def test_the_bootstrap_has_the_width_of_the_normal_law_where_that_holds():
    random = np.random.default_rng(0)
    tokens = np.full(400, 10)
    losses = tokens * random.normal(0.3, 0.5, 400)
    low, high = bootstrap([losses], [tokens], 1)
    mean, half = losses.sum() / tokens.sum(), 1.96 * (losses / tokens).std() / 20
    assert low < mean < high and (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert bootstrap([losses], [tokens], 1) == (low, high) != bootstrap([losses], [tokens], 2)


def test_the_bootstrap_draws_rows_with_their_tokens_and_within_their_group():
    constant = np.array([3, 1, 7, 20])
    assert bootstrap([0.25 * constant], [constant], 0) == pytest.approx((0.25, 0.25))
    groups = [np.array([1.0, 1.0]), np.array([3.0, 3.0, 3.0])]
    assert bootstrap(groups, [np.array([1, 1]), np.array([1, 1, 1])], 0) == pytest.approx((2.0, 2.0))


def test_the_crossover_lies_on_a_straight_line_over_the_logarithm():
    assert crossover([(10, 1.0), (1000, -1.0)]) == pytest.approx(100)
    assert crossover([(100, -1.0), (10, 3.0)]) == pytest.approx(10**1.75)
    assert crossover([(20, 0.2), (50, 0.1), (100, -0.1), (400, 0.2)]) == pytest.approx(np.sqrt(50 * 100))
    assert crossover([(20, 0.2), (50, 0.1)]) is None and crossover([]) is None and crossover([(5, 1.0)]) is None
