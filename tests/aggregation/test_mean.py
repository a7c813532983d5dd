"""The weighted mean of updates against its closed forms, added to the adapter as FedAvg does."""

import numpy as np
import pytest

from silotune.aggregation import error as error_module
from silotune.aggregation.interface import Cohort, Contribution, Round, collect
from silotune.aggregation.mean import averaged, plain
from silotune.algorithms.interface import ServerState
from silotune.algorithms.server_optimizers import optimizer_of
from silotune.model.adapter import AdapterSpec, initial_adapter
from silotune.model.algebra import aggregation_error
from silotune.settings import FederationSettings

SPEC = AdapterSpec.of({f"m{i}.lora_{k}.weight": ((2, 9) if k == "A" else (7, 2)) for i in range(8) for k in "AB"})
ONE = FederationSettings()


def drift(seed, scale=0.1):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(scale=scale, size=shape).astype(np.float32) for name, shape in SPEC.shapes}


def start():
    return ServerState(0, {name: value + drift(99)[name] for name, value in initial_adapter(SPEC, 0).items()})


def go(state, updates, weights, settings=ONE, order=None):
    cohort = Cohort({f"s{i}": w for i, w in enumerate(weights)})
    found = [Contribution(f"s{i}", updates[i], weights[i]) for i in (order or range(len(updates)))]
    aggregate = mean_of(state, cohort, found)
    return aggregate, optimizer_of(settings).apply(state, aggregate.update)


def mean_of(state, cohort, found):
    return collect(plain, Round(state.adapter, SPEC.names, cohort), lambda _: iter(found))


def test_weighted_mean_of_factors_at_any_server_rate():
    state, updates, weights = start(), [drift(i) for i in range(3)], [5, 2, 3]
    for rate in (1.0, 0.5, 2.0):
        _, after = go(state, updates, weights, FederationSettings(server_rate=rate))
        assert after.round == state.round + 1
        for name, value in state.adapter.items():
            expected = value + rate * sum(w / 10 * u[name] for w, u in zip(weights, updates, strict=True))
            assert np.abs(after.adapter[name] - expected).max() < 1e-6


def test_one_silo_gives_its_own_adapter_and_no_error():
    state, update = start(), drift(1)
    aggregate, after = go(state, [update], [17])
    assert aggregate.e_agg < 1e-7
    assert all((after.adapter[n] == state.adapter[n] + update[n]).all() for n in update)


def test_order_of_arrival_changes_no_bit():
    state, updates, weights = start(), [drift(i) for i in range(4)], [5, 2, 3, 9]
    first, after = go(state, updates, weights)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        aggregate, again = go(state, updates, weights, order=order)
        assert aggregate.e_agg == first.e_agg and aggregate.silos == first.silos
        assert all((again.adapter[n] == after.adapter[n]).all() for n in after.adapter)


def test_one_local_step_of_sgd_is_the_central_step():
    """With one SGD step at each silo, FedAvg is SGD on sum_k w_k L_k, here for L_k = |theta - c_k|^2 / 2."""
    state, centres, weights, rate = start(), [drift(i, 1.0) for i in range(3)], [1, 2, 1], 0.1
    updates = [{n: -np.float32(rate) * (state.adapter[n] - c[n]) for n in c} for c in centres]
    _, after = go(state, updates, weights)
    for name, value in state.adapter.items():
        gradient = sum(w / 4 * (value - c[name]) for w, c in zip(weights, centres, strict=True))
        assert np.abs(after.adapter[name] - (value - rate * gradient)).max() < 1e-6


def test_nothing_arrived_and_nothing_changed():
    state = start()
    assert mean_of(state, Cohort({"a": 1}), []) is None
    still = {name: np.zeros(shape, np.float32) for name, shape in SPEC.shapes}
    aggregate, after = go(state, [still, still], [1, 2])
    assert aggregate.e_agg == 0.0 and all((after.adapter[n] == state.adapter[n]).all() for n in still)


def test_the_reported_error_is_that_of_the_silos_who_arrived():
    state, updates = start(), [drift(i) for i in range(3)]
    cohort = Cohort({"s0": 4, "s1": 1, "s2": 2, "absent": 100})
    found = [Contribution(f"s{i}", updates[i], cohort.weights[f"s{i}"]) for i in range(3)]
    moved = [{n: state.adapter[n] + u[n] for n in u} for u in updates]
    expected = aggregation_error(state.adapter, moved, [4, 1, 2])
    assert mean_of(state, cohort, found).e_agg == pytest.approx(expected, rel=1e-6)


def test_large_cohorts_see_the_error_through_a_sketch(monkeypatch):
    state, updates, weights = start(), [drift(i) for i in range(5)], [5, 2, 3, 9, 1]
    exact, _ = go(state, updates, weights)
    monkeypatch.setattr(error_module, "KEEP_BYTES", 0)
    sketched, after = go(state, updates, weights)
    assert sketched.e_agg != exact.e_agg
    assert sketched.e_agg == pytest.approx(exact.e_agg, rel=0.13)
    again, _ = go(state, updates, weights, order=[4, 0, 3, 1, 2])
    assert again.e_agg == sketched.e_agg
    assert after.adapter.keys() == state.adapter.keys()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_an_error_too_large_to_be_summed_is_unknown_and_stops_nothing(monkeypatch, order):
    monkeypatch.setattr(error_module, "KEEP_BYTES", 0)
    state, updates = start(), [drift(0), {name: np.full_like(u, 500.0) for name, u in drift(1).items()}, drift(2)]
    aggregate, after = go(state, updates, [1, 2, 1], order=order)
    assert aggregate.e_agg is None
    mean = {name: sum(w / 4 * u[name] for w, u in zip([1, 2, 1], updates, strict=True)) for name in after.adapter}
    assert all(np.allclose(after.adapter[name], state.adapter[name] + mean[name], rtol=1e-6) for name in mean)
    assert np.isfinite(go(state, [drift(0), drift(1)], [1, 1])[0].e_agg)


@pytest.mark.parametrize("kept", [error_module.KEEP_BYTES, 0])
def test_with_magnitudes_the_mean_is_that_of_each_tensor_and_its_error_is_unknown(monkeypatch, kept):
    monkeypatch.setattr(error_module, "KEEP_BYTES", kept)
    spec = AdapterSpec.of({"m.lora_A.weight": (2, 5), "m.lora_B.weight": (4, 2), "m.lora_magnitude_vector": (4,)})
    updates = [
        {name: np.random.default_rng(seed).normal(size=shape).astype(np.float32) for name, shape in spec.shapes}
        for seed in range(2)
    ]
    cohort = Cohort({"s0": 3, "s1": 1})
    found = [Contribution(f"s{i}", update, 3 - 2 * i) for i, update in enumerate(updates)]
    aggregate = averaged(Round(initial_adapter(spec, 0), spec.names, cohort), found)
    assert aggregate.e_agg is None
    for name in spec.names:
        assert np.allclose(aggregate.update[name], 0.75 * updates[0][name] + 0.25 * updates[1][name], atol=1e-6)
