"""What each method trains, sends and starts from, and that its averaging is what it says."""

import hashlib
from typing import get_args

import numpy as np
import pytest

from silotune import algorithms
from silotune.aggregation.interface import Cohort, Contribution, Round
from silotune.aggregation.mean import averaged
from silotune.algorithms import alternating, fedavg, ffa
from silotune.algorithms.interface import ServerState
from silotune.algorithms.server_optimizers import plain
from silotune.errors import ModelError
from silotune.model.adapter import AdapterSpec, flatten, initial_adapter
from silotune.settings import AlgorithmName
from silotune.settings.federation import ADAPTER_ALONE, ONE_FACTOR
from silotune.settings.recipe import WITH_DORA

SPEC = AdapterSpec.of({f"m{i}.lora_{k}.weight": ((3, 37) if k == "A" else (11, 3)) for i in range(5) for k in "AB"})
A, B = SPEC.with_role("A"), SPEC.with_role("B")
METHODS = get_args(AlgorithmName)
DIGEST = "4d4310685b10c67cb839dd5a307a859e1bbc8eb1e5e59acd956e01da148e36ad"


def drift(names, seed, scale=0.1):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(scale=scale, size=shape).astype(np.float32) for name, shape in SPEC.shapes if name in names
    }


def grown(method):
    """An adapter of a method after some rounds: what it never trains is as it starts."""
    start = dict(method.start(SPEC, 0))
    moved = drift(SPEC.names - method.seeded(SPEC), 99)
    return {name: value + moved[name] if name in moved else value for name, value in start.items()}


def test_what_is_trained_in_which_round():
    assert [fedavg.METHOD.trainable(SPEC, round_) for round_ in (1, 2, 3)] == [A | B] * 3
    assert [ffa.METHOD.trainable(SPEC, round_) for round_ in (1, 2, 3)] == [B] * 3
    assert [alternating.METHOD.trainable(SPEC, round_) for round_ in (1, 2, 3)] == [B, A, B]


@pytest.mark.parametrize("name", METHODS)
def test_it_starts_as_the_base_from_the_seed_alone(name):
    method = algorithms.find(name)
    start, again, other = (method.start(SPEC, seed) for seed in (3, 3, 4))
    assert AdapterSpec.of(start) == SPEC and all(value.dtype == np.float32 for value in start.values())
    assert all((start[tensor] == 0).all() for tensor in B)
    assert flatten(start).tobytes() == flatten(again).tobytes() != flatten(other).tobytes()


@pytest.mark.parametrize("name", METHODS)
def test_a_silo_has_the_whole_adapter_from_what_was_sent(name):
    method = algorithms.find(name)
    adapter = {**initial_adapter(SPEC, 1), **drift(B, 1)} | {
        key: method.start(SPEC, 7)[key] for key in method.seeded(SPEC)
    }
    sent = {key: adapter[key] for key in method.sent(SPEC).names}
    whole = method.whole(sent, SPEC, 7)
    assert AdapterSpec.of(whole) == SPEC
    assert all((whole[key] == adapter[key]).all() for key in adapter)


def test_what_the_settings_say_that_a_method_goes_with_is_true():
    one, alone = set(), set()
    for name in METHODS:
        method = algorithms.find(name)
        rounds = [method.trainable(SPEC, round_) for round_ in (1, 2, 3, 4)]
        if all(trained <= A or trained <= B for trained in rounds):
            one.add(name)
        if method.control is None:
            alone.add(name)
    assert (one, alone) == (ONE_FACTOR, ADAPTER_ALONE)
    assert set(METHODS) - one == WITH_DORA, "whose mean is exact for the products alone goes with LoRA alone"
    turning = AdapterSpec((*SPEC.shapes, ("m0.lora_magnitude_vector", (11,))))
    (magnitude,) = turning.with_role("magnitude")
    assert all(magnitude in algorithms.find(name).trainable(turning, round_) for name in WITH_DORA for round_ in (1, 2))


def test_ffa_never_sends_a_and_alternating_sends_both():
    assert ffa.METHOD.sent(SPEC).names == B and ffa.METHOD.seeded(SPEC) == A
    assert alternating.METHOD.sent(SPEC) == fedavg.METHOD.sent(SPEC) == SPEC


def test_the_rows_of_ffas_a_are_orthogonal_and_as_long_as_those_of_peft():
    start, usual = ffa.METHOD.start(SPEC, 0), initial_adapter(SPEC, 0)
    for name in A:
        assert np.abs(start[name].astype(np.float64) @ start[name].T - np.eye(3) / 3).max() < 1e-7
        # the same row space as FedAvg's first A
        project = np.linalg.pinv(usual[name].astype(np.float64)) @ usual[name]
        assert np.abs(start[name] @ project - start[name]).max() < 1e-6
    wide = initial_adapter(AdapterSpec.of({"m.lora_A.weight": (64, 4096), "m.lora_B.weight": (1, 64)}), 0)
    rows = ffa.orthonormal_rows(wide["m.lora_A.weight"].astype(np.float64))
    assert np.abs(rows @ rows.T - np.eye(64)).max() < 1e-14


def test_ffas_a_has_the_same_bits_on_every_machine():
    """Sums in a fixed order: this digest is that of any processor and any build of NumPy."""
    assert hashlib.sha256(flatten(ffa.METHOD.start(SPEC, 0)).tobytes()).hexdigest() == DIGEST


def test_a_rank_above_the_width_is_refused_by_ffa():
    spec = AdapterSpec.of({"narrow.lora_A.weight": (5, 4), "narrow.lora_B.weight": (4, 5)})
    with pytest.raises(ModelError, match=r"lora\.r is 5 and narrow has 4 inputs"):
        ffa.METHOD.start(spec, 0)


@pytest.mark.parametrize(("name", "round_"), [("ffa", 1), ("ffa", 2), ("alternating", 1), ("alternating", 2)])
def test_averaging_is_exact_where_one_factor_is_shared(name, round_):
    """sum_k w_k B_k A_k is the product of the averaged factors, and e_agg says so."""
    method, weights = algorithms.find(name), [5, 2, 3]
    adapter, names = grown(method), method.trainable(SPEC, round_)
    updates = [drift(names, seed) for seed in range(3)]
    cohort = Cohort({f"s{i}": weight for i, weight in enumerate(weights)})
    found = [Contribution(f"s{i}", update, weights[i]) for i, update in enumerate(updates)]
    aggregate = averaged(Round(adapter, names, cohort), found)
    after = plain(1.0).apply(ServerState(round_ - 1, adapter), aggregate.update).adapter
    assert aggregate.e_agg < 1e-7 and set(aggregate.update) == names
    for _, name_a, name_b in SPEC.pairs():
        moved = [
            {key: adapter[key].astype(np.float64) + update.get(key, 0) for key in (name_a, name_b)}
            for update in updates
        ]
        expected = sum(weight / 10 * m[name_b] @ m[name_a] for weight, m in zip(weights, moved, strict=True))
        found_product = after[name_b].astype(np.float64) @ after[name_a]
        assert np.abs(found_product - expected).max() < 1e-6 * np.abs(expected).max()
    assert all((after[key] == adapter[key]).all() for key in SPEC.names - names)
