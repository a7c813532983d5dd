"""Closed forms of the aggregation error (float64), and of norms of sums of B A."""

import numpy as np
import pytest

from silotune.model.algebra import aggregation_error, squared_norm

M, N, R, K = 7, 5, 2, 3
PREFIX = "base_model.model.x"


def adapter(a, b):
    return {f"{PREFIX}.lora_A.weight": a, f"{PREFIX}.lora_B.weight": b}


def draw(seed=0, m=M, n=N, drift=1.0):
    rng = np.random.default_rng(seed)
    a0, b0 = rng.normal(size=(R, n)), rng.normal(size=(m, R))
    locals_ = [(a0 + drift * rng.normal(size=a0.shape), b0 + drift * rng.normal(size=b0.shape)) for _ in range(K)]
    return (a0, b0), locals_, np.array([0.5, 0.2, 0.3])


def by_hand(start, locals_, weights):
    mean = sum(w * b @ a for w, (a, b) in zip(weights, locals_, strict=True))
    bar_a = sum(w * a for w, (a, _) in zip(weights, locals_, strict=True))
    bar_b = sum(w * b for w, (_, b) in zip(weights, locals_, strict=True))
    return mean - bar_b @ bar_a, mean - start[1] @ start[0], bar_a, bar_b


def error_of(start, locals_, weights):
    return aggregation_error(adapter(*start), [adapter(*pair) for pair in locals_], weights)


def test_the_norm_against_dense():
    _, locals_, _ = draw()
    (a1, b1), (a2, b2) = locals_[:2]
    dense = float(np.sum((0.3 * b1 @ a1 - 2 * b2 @ a2) ** 2))
    assert squared_norm([(0.3, b1, a1), (-2.0, b2, a2)]) == pytest.approx(dense, rel=1e-12)


def test_the_error_is_the_weighted_covariance_of_the_factors():
    start, locals_, weights = draw()
    error, _, bar_a, bar_b = by_hand(start, locals_, weights)
    covariance = sum(w * (b - bar_b) @ (a - bar_a) for w, (a, b) in zip(weights, locals_, strict=True))
    pairs = zip(weights, locals_, strict=True)
    between = (
        sum(w * v * (b - d) @ (a - c) for w, (a, b) in pairs for v, (c, d) in zip(weights, locals_, strict=True)) / 2
    )
    assert np.abs(error - covariance).max() < 1e-12
    assert np.abs(error - between).max() < 1e-12
    assert np.linalg.matrix_rank(error) <= (K - 1) * R


@pytest.mark.parametrize(("m", "n"), [(7, 5), (5, 5), (3, 9)])
def test_the_measured_error_is_that_of_dense_matrices(m, n):
    start, locals_, weights = draw(3, m, n)
    error, change, _, _ = by_hand(start, locals_, weights)
    expected = np.linalg.norm(error) / np.linalg.norm(change)
    assert error_of(start, locals_, weights) == pytest.approx(expected, rel=1e-10)
    assert error_of(start, locals_, 10 * weights) == pytest.approx(expected, rel=1e-10)


def test_the_error_falls_with_the_square_of_the_drift():
    start, locals_, weights = draw()
    full, _, _, _ = by_hand(start, locals_, weights)
    half = [((a + start[0]) / 2, (b + start[1]) / 2) for a, b in locals_]
    assert np.linalg.norm(by_hand(start, half, weights)[0]) == pytest.approx(np.linalg.norm(full) / 4, rel=1e-12)


def test_no_error_with_one_silo_or_a_common_factor():
    start, locals_, weights = draw()
    assert error_of(start, locals_[:1], [1.0]) < 1e-12
    same_a = [(locals_[0][0], b) for _, b in locals_]
    same_b = [(a, locals_[0][1]) for a, _ in locals_]
    assert error_of(start, same_a, weights) < 1e-12
    assert error_of(start, same_b, weights) < 1e-12
    assert error_of(start, [start] * 3, weights) == 0.0


def test_silos_may_come_in_any_order_and_be_split_in_halves():
    start, locals_, weights = draw()
    whole = error_of(start, locals_, weights)
    assert error_of(start, locals_[::-1], weights[::-1]) == pytest.approx(whole, rel=1e-12)
    halves = error_of(start, [locals_[0], *locals_], [0.25, 0.25, 0.2, 0.3])
    assert halves == pytest.approx(whole, rel=1e-12)
