"""Every method from a recipe to an adapter: what travels, what stays, and that the engines agree."""

from typing import get_args

import numpy as np
import pytest
from safetensors.numpy import load_file

import silotune
from silotune import algorithms
from silotune.data.seeds import derive
from silotune.federation import checkpoint
from silotune.model.adapter import AdapterSpec
from silotune.settings import AlgorithmName
from silotune.settings.federation import ONE_FACTOR

EXACT = sorted(ONE_FACTOR)
METHODS = [name for name in get_args(AlgorithmName) if name != "fedavg"]


def adapter_of(run):
    return load_file(run.folder.adapter / "adapter_model.safetensors")


def sent(run, direction, kind):
    """Roles of the tensors in each message of a kind, by round."""
    found = {}
    for entry in run.folder.ledger():
        if (entry["direction"], entry["kind"]) == (direction, kind):
            roles = {name.split("lora_")[1][0] for name, _ in entry["tensors"]}
            assert found.setdefault(entry["round"], roles) == roles
    return found


@pytest.fixture
def train(make_recipe, tmp_path):
    def go(method, name="run", **federation):
        recipe = make_recipe(federation={"algorithm": method, **federation}, training={"rounds": 3})
        return silotune.train(recipe, out=tmp_path / name)

    return go


def test_ffa_sends_b_alone_and_keeps_the_a_that_was_drawn(train):
    run = train("ffa")
    adapter = adapter_of(run)
    spec = AdapterSpec.of(adapter)
    start = algorithms.find("ffa").start(spec, derive(0, "adapter"))
    for name in spec.with_role("A"):
        assert adapter[name].tobytes() == start[name].tobytes()
    assert all((adapter[name] != 0).any() for name in spec.with_role("B"))
    assert sent(run, "up", "train") == {number: {"B"} for number in (1, 2, 3)}
    assert sent(run, "down", "evaluate") == {number: {"B"} for number in (0, 1, 2, 3)}


def test_alternating_trains_b_in_odd_rounds_and_a_in_even_ones(train):
    run = train("alternating")
    assert sent(run, "up", "train") == {1: {"B"}, 2: {"A"}, 3: {"B"}}
    assert sent(run, "down", "evaluate") == {number: {"A", "B"} for number in (0, 1, 2, 3)}
    before, after = (load_file(run.folder.states / f"round-000{number}" / "state.safetensors") for number in (2, 3))
    for name, value in after.items():
        assert (value.tobytes() == before[name].tobytes()) == ("lora_A" in name), name


@pytest.mark.parametrize("method", EXACT)
def test_it_learns_and_is_averaged_exactly(train, method):
    run = train(method)
    rounds = [line for line in run.metrics() if line["silo"] is None]
    assert all(line["e_agg"] < 1e-6 for line in rounds[1:])
    assert rounds[-1]["evaluation"]["loss"] < rounds[0]["evaluation"]["loss"]


@pytest.mark.parametrize("method", METHODS)
def test_silos_trained_in_one_pass_come_to_the_same_but_for_rounding(train, method):
    one, other = (adapter_of(train(method, f"run{together}", together=together)) for together in (1, 3))
    assert all(np.abs(one[name] - other[name]).max() < 1e-5 for name in one)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "adam"])
def test_any_optimizer_goes_with_any_method_and_resumes_to_the_same_bits(make_recipe, tmp_path, method, optimizer):
    federation = {"algorithm": method, "server_optimizer": optimizer}
    recipe = make_recipe(federation=federation, training={"rounds": 3}, evaluation={"every": 0})
    whole = silotune.train(recipe, out=tmp_path / "whole")

    def stop(event):
        if event.kind == "round" and event.fields["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, silotune.errors.Interrupted)):
        silotune.train(recipe, out=tmp_path / "cut", watch=stop)
    again = silotune.train(recipe, resume=tmp_path / "cut")
    one, other = adapter_of(whole), adapter_of(again)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    saved = [checkpoint.latest(run.folder).state.slots for run in (whole, again)]
    assert saved[0].keys() == saved[1].keys() and saved[0]


@pytest.mark.parametrize("method", EXACT)
def test_an_update_of_the_other_factor_is_left_out(train, monkeypatch, method):
    """A silo that sends more than the round trains is not admitted."""
    from silotune.silo import start

    monkeypatch.setattr(start, "trainable_in", lambda work: work.tuner.spec.names)
    with pytest.raises(silotune.errors.FederationError, match=r"0 of 3 updates could be used.*tensors are unknown"):
        train(method)


@pytest.mark.parametrize(
    ("method", "federation"),
    [("fedavg", {"robust": "clip", "minimum": 3}),
     ("ffa", {"robust": "trimmed", "trim": 0.34, "weights": "uniform", "minimum": 3})],
)  # fmt: skip
def test_robust_aggregation_is_what_a_recipe_asks_for(train, method, federation):
    run, plain = train(method, **federation), train(method, "plain", minimum=3)
    rounds = [line for line in run.metrics() if line["silo"] is None]
    assert rounds[-1]["evaluation"]["loss"] < rounds[0]["evaluation"]["loss"]
    assert any((adapter_of(run)[name] != value).any() for name, value in adapter_of(plain).items())
