"""SCAFFOLD against its closed forms, on quadratics; and in a run, where its variates add up and travel as declared."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

import silotune
from silotune.aggregation.interface import Aggregate
from silotune.algorithms import scaffold
from silotune.algorithms.interface import LocalResult, ServerState
from silotune.algorithms.scaffold import METHOD, PREFIX
from silotune.federation import checkpoint, updates
from silotune.model.adapter import AdapterSpec
from silotune.settings import FederationSettings
from silotune.silo.worker import Worker

NAME = "m.lora_B.weight"
RATE, STEPS = 0.05, 10


def federated(slopes, centres, weights, rounds, controlled=True):
    """x after rounds of gradient descent on sum_k w_k a_k / 2 (x - b_k)^2, by the method's own functions."""
    x, common, own = np.zeros(1, np.float32), {PREFIX + NAME: np.zeros(1, np.float32)}, [{} for _ in slopes]
    shares = np.array(weights) / sum(weights)
    for _ in range(rounds):
        updates, changes = [], []
        for k, (slope, centre) in enumerate(zip(slopes, centres, strict=True)):
            theta, drift = x.copy(), METHOD.control.drift(common, own[k])[NAME]
            for _ in range(STEPS):
                theta -= RATE * slope * (theta - centre) + RATE * drift * controlled
            updates.append(theta - x)
            changes.append(METHOD.control.change(LocalResult(common, {NAME: theta - x}, RATE * STEPS))[PREFIX + NAME])
            own[k] = {PREFIX + NAME: own[k].get(PREFIX + NAME, 0) + changes[-1]}
        x = x + sum(share * update for share, update in zip(shares, updates, strict=True))
        common = {PREFIX + NAME: common[PREFIX + NAME] + sum(s * c for s, c in zip(shares, changes, strict=True))}
        mean = sum(share * one[PREFIX + NAME] for share, one in zip(shares, own, strict=True))
        assert common[PREFIX + NAME] == pytest.approx(mean, abs=1e-5), "c is the mean of the c_k"
    return float(x[0])


@pytest.mark.parametrize("weights", [(1, 1), (3, 1)])
def test_silos_of_different_slopes_come_to_the_common_optimum_where_fedavg_stays_away(weights):
    slopes, centres = (1.0, 8.0), (-1.0, 1.0)
    shares = np.array(weights) / sum(weights)
    optimum = sum(s * a * b for s, a, b in zip(shares, slopes, centres, strict=True)) / (shares @ slopes)
    assert federated(slopes, centres, weights, 150) == pytest.approx(optimum, abs=1e-3)
    assert abs(federated(slopes, centres, weights, 150, controlled=False) - optimum) > 0.1


def test_silos_that_are_alike_make_it_fedavg():
    same = (2.0, 2.0), (0.7, 0.7), (1, 1), 5
    assert federated(*same) == pytest.approx(federated(*same, controlled=False), abs=1e-6)


def test_a_silo_that_never_moved_changes_nothing():
    (changed,) = scaffold.change(
        LocalResult({PREFIX + NAME: np.ones(1, np.float32)}, {NAME: np.zeros(1)}, 0.0)
    ).values()
    assert (changed == 0).all()


def test_variates_are_of_the_adapters_shapes_and_of_no_name_of_its_own():
    spec = AdapterSpec.of({"m.lora_A.weight": (2, 5), NAME: (3, 2)})
    beside = METHOD.beside(spec)
    assert beside.size == spec.size and not beside.names & spec.names
    assert spec.plus(beside) == AdapterSpec.of({**dict(spec.shapes), **dict(beside.shapes)})


# ------------------------------------------------------------------------------------------------- in a run


@pytest.fixture
def train(make_recipe, tmp_path):
    def go(name="scaffold", rounds=3, **federation):
        recipe = make_recipe(federation={"algorithm": name, **federation}, training={"rounds": rounds})
        return silotune.train(recipe, out=tmp_path / name)

    return go


def state(run, round_):
    return load_file(run.folder.states / f"round-{round_:04d}" / "state.safetensors")


def test_its_first_round_is_fedavgs_to_the_bit_and_its_later_ones_are_not(train):
    ours, theirs = train(rounds=2), train("fedavg", rounds=2)
    for round_, same in ((1, True), (2, False)):
        one, other = state(ours, round_), state(theirs, round_)
        adapter = [name for name in other if name.startswith("adapter/")]
        assert all(one[name].tobytes() == other[name].tobytes() for name in adapter) is same
    rounds = [line["evaluation"]["loss"] for line in ours.metrics() if line["silo"] is None]
    assert rounds[-1] < rounds[0]


def test_the_servers_variates_are_the_mean_of_the_silos(train, tmp_path):
    run = train(weights="uniform")
    slots = checkpoint.latest(run.folder).state.slots
    own = [load_file(path) for path in (run.folder.path / "memory").glob("*/*/round-0003.safetensors")]
    assert len(own) == 3 and set(slots) == set(own[0])
    for name, common in slots.items():
        mean = sum(one[name].astype(np.float64) for one in own) / 3
        assert np.abs(common - mean).max() < 1e-5 and np.abs(common).max() > 1e-3, name


def test_the_variates_travel_to_train_and_not_to_evaluate(train):
    run = train()
    for entry in run.folder.ledger():
        names = {name for name, _ in entry["tensors"]}
        both = {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}
        if entry["kind"] == "train":
            kept = entry["fields"].get("held")  # the silo keeps the adapter
            assert both and names == (set() if kept else both) | {PREFIX + name for name in both}
        else:
            assert not both


def test_a_silo_that_is_not_asked_keeps_its_variates(train):
    run = train(cohort=0.6)
    asked = {}
    for entry in run.folder.ledger():
        if entry["kind"] == "train" and entry["direction"] == "up":
            asked.setdefault(entry["silo"], []).append(entry["round"])
    assert min(map(len, asked.values())) < 3
    kept = [
        sorted(path.name for path in folder.glob("round-*")) for folder in (run.folder.path / "memory").glob("*/*/")
    ]
    assert sorted(map(len, kept)) == sorted(map(len, asked.values()))


def test_a_silo_that_is_away_holds_back_no_more_than_its_share():
    """Weights are declared: one of a billion rows that is not asked counts as max_share of all, not as all."""
    spec = AdapterSpec.of({NAME: (2,)})
    settings = FederationSettings(algorithm="scaffold", max_share=0.5)
    federation = SimpleNamespace(
        method=METHOD, spec=spec, recipe=SimpleNamespace(federation=settings),
        members={1: "a", 2: "b", 3: "c"},
        profiles={name: SimpleNamespace(train_rows=rows, train_loss_tokens=rows) for name, rows in (("a", 10), ("b", 10), ("c", 10**9))},
    )  # fmt: skip
    aggregate = Aggregate({PREFIX + NAME: np.ones(2, np.float32)}, None, ("a", "b"))
    after = updates.controls(federation, ServerState(1, {NAME: np.zeros(2, np.float32)}), aggregate)
    assert after[PREFIX + NAME].tolist() == [0.5, 0.5]


def test_a_silo_without_a_place_to_remember_says_so(train, monkeypatch):
    honest = Worker.answer
    monkeypatch.setattr(
        Worker, "answer", lambda worker, request: honest(Worker(replace(worker.silo, memory=None)), request)
    )
    with pytest.raises(silotune.FederationError, match=r'algorithm = "scaffold" has a silo remember'):
        train()


@pytest.mark.parametrize("robust", [{"robust": "clip", "minimum": 3}, {"robust": "trimmed", "minimum": 3, "trim": 0.34, "weights": "uniform"}])  # fmt: skip
def test_robust_rules_are_refused(make_recipe, robust):
    with pytest.raises(silotune.RecipeError, match='"scaffold"` do not go together'):
        make_recipe(federation={"algorithm": "scaffold", **robust})
