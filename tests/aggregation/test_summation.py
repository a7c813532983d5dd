"""The exact mean: any order gives the same bits, and they are the right ones."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from silotune.aggregation.summation import LIMIT, ExactMean


def mean_of(vectors, weights, order, total=None):
    mean = ExactMean(len(vectors[0]), total or sum(weights))
    for index in order:
        mean.add(np.asarray(vectors[index], np.float32), weights[index])
    return mean.mean()


def test_any_order_gives_the_same_bits():
    rng = np.random.default_rng(0)
    vectors, weights = rng.normal(scale=1e-3, size=(5, 1000)).astype(np.float32), [400, 168, 3, 1, 77]
    first = mean_of(vectors, weights, range(5))
    plain = sum(np.float32(w / sum(weights)) * v for w, v in zip(weights, vectors, strict=True))
    assert np.abs(first - plain).max() < 1e-9
    for order in itertools.permutations(range(5)):
        assert (mean_of(vectors, weights, order) == first).all()


@given(
    st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(1, 10_000)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_mean_is_right_to_float32(pairs, random):
    vectors, weights = [[value] for value, _ in pairs], [weight for _, weight in pairs]
    order = list(range(len(pairs)))
    random.shuffle(order)
    exact = sum(Fraction(value) * weight for value, weight in pairs) / sum(weights)
    result = float(mean_of(vectors, weights, order)[0])
    assert abs(result - float(exact)) <= 2**-24 * abs(float(exact)) + len(pairs) * 2**-46
    assert result == float(mean_of(vectors, weights, order[::-1])[0])


def test_the_sum_takes_seven_bytes_a_number_and_holds_negative_ones():
    mean = ExactMean(3, 4)
    for vector in ([-1e-9, -2.5, 2.0**8], [1e-9, 2.5, -(2.0**8)], [-1.0, 0.0, 3.0]):
        mean.add(np.asarray(vector, np.float32), 1)
    assert mean._high.nbytes + mean._middle.nbytes + mean._low.nbytes == 21
    assert mean.mean() == pytest.approx([-1 / 3, 0.0, 1.0], abs=1e-13)


def test_those_who_do_not_arrive_leave_a_mean_of_the_rest():
    vectors, weights = [[1.0], [2.0], [50.0]], [1, 3, 100]
    assert float(mean_of(vectors, weights, [0, 1], total=104)[0]) == pytest.approx(1.75, rel=1e-7)


def test_extremes_do_not_overflow():
    vectors = [[LIMIT * 0.999, -LIMIT * 0.999, 1e-30]] * 3
    assert mean_of(vectors, [2**40, 1, 2**40], range(3)) == pytest.approx([LIMIT * 0.999, -LIMIT * 0.999, 0.0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, LIMIT])
def test_what_cannot_be_summed_is_refused(value):
    with pytest.raises(ValueError, match="not finite or not below"):
        mean_of([[value]], [1], [0])


def test_weights_and_shapes_are_checked():
    mean = ExactMean(2, 3)
    for vector, weight in (([1.0, 2.0], 0), ([1.0, 2.0], 4), ([1.0], 1)):
        with pytest.raises(ValueError, match=r"weight|shape"):
            mean.add(np.asarray(vector, np.float32), weight)
    with pytest.raises(ValueError, match="nothing was added"):
        mean.mean()
    with pytest.raises(ValueError, match="at least 1"):
        ExactMean(1, 0)
