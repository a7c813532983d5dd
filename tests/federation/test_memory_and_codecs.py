"""Codecs and what silos remember, from a recipe to an adapter: what travels, what is left, and nothing lost by a stop."""

from dataclasses import replace
from typing import get_args

import pytest
from safetensors.numpy import load_file

import silotune
from silotune.federation import checkpoint
from silotune.federation.server import sendable, unrounded
from silotune.model.adapter import AdapterSpec
from silotune.settings import AlgorithmName
from silotune.silo import train as training
from silotune.silo.memory import KEEP, _digest
from silotune.silo.worker import Worker
from silotune.wire import codecs, manifest

LOSSY = ("bfloat16", "int8")


def adapter_of(run):
    return load_file(run.folder.adapter / "adapter_model.safetensors")


@pytest.fixture
def train(make_recipe, tmp_path):
    def go(codec, name="run", rounds=3, moments="reset", watch=lambda _: None, resume=False, **federation):
        recipe = make_recipe(
            wire={"codec": codec}, training={"rounds": rounds, "moments": moments}, federation=federation
        )
        return silotune.train(recipe, watch=watch, **{"resume" if resume else "out": tmp_path / name})

    return go


@pytest.mark.parametrize("codec", LOSSY)
def test_it_learns_as_without_and_says_what_was_rounded(train, codec):
    run, exact = train(codec), train("float32", "exact")
    rounds, plain = ([line for line in one.metrics() if line["silo"] is None] for one in (run, exact))
    gained = plain[0]["evaluation"]["loss"] - plain[-1]["evaluation"]["loss"]
    assert abs(rounds[-1]["evaluation"]["loss"] - plain[-1]["evaluation"]["loss"]) < 0.02 * gained
    errors = [line["train"]["codec_error"] for line in run.metrics() if line["silo"] and line["train"]]
    assert len(errors) == 9 and all(1e-4 < error < 2e-2 for error in errors)
    assert {line["train"]["codec_error"] for line in exact.metrics() if line["silo"] and line["train"]} == {0.0}


@pytest.mark.parametrize("codec", LOSSY)
def test_it_travels_in_so_many_bytes_both_ways(train, codec):
    run, exact = train(codec), train("float32", "exact")
    for kind, direction in (("train", "up"), ("evaluate", "down")):
        (here,), (there,) = (
            {(entry["dtype"], entry["bytes"]) for entry in one.folder.ledger()
             if entry["kind"] == kind and entry["direction"] == direction and entry["round"] == 1
             and entry["silo"] == "ash"} for one in (run, exact)
        )  # fmt: skip
        size = sum(value.size for value in adapter_of(run).values())
        assert here[0] == codec and there[0] == "float32"
        saved = codecs.find("float32").bytes(size) - codecs.find(codec).bytes(size)
        assert abs(there[1] - here[1] - saved) < 200  # the manifest and the npy header say the codec too


@pytest.mark.parametrize("codec", LOSSY)
def test_the_adapter_that_is_left_is_one_that_silos_scored(train, codec):
    left = adapter_of(train(codec))
    said = manifest.rounded(left, codecs.find(codec))
    assert all(said[name].tobytes() == value.tobytes() for name, value in left.items())


@pytest.mark.parametrize("codec", LOSSY)
def test_what_rounding_takes_of_the_adapter_is_given_back(train, codec):
    state = checkpoint.latest(train(codec).folder).state
    exact = unrounded(state)
    assert not exact.slots and any((exact.adapter[name] != value).any() for name, value in state.adapter.items())
    again = sendable(exact, AdapterSpec.of(exact.adapter), codecs.find(codec))
    assert all((again.adapter[name] == value).all() for name, value in state.adapter.items())


@pytest.mark.parametrize("algorithm", get_args(AlgorithmName))
def test_a_stopped_run_with_memory_goes_on_to_the_same_bits(train, tmp_path, algorithm):
    whole = train("int8", "whole", rounds=4, algorithm=algorithm, server_optimizer="momentum")

    def stop(event):  # two silos have answered a round that will not count
        if event.kind == "answered" and event.fields["round"] == 3 and event.fields["silo"] != "ash":
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, silotune.errors.Interrupted)):
        train("int8", "cut", rounds=4, algorithm=algorithm, server_optimizer="momentum", watch=stop)
    again = train("int8", "cut", rounds=4, algorithm=algorithm, server_optimizer="momentum", resume=True)
    one, other = adapter_of(whole), adapter_of(again)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    kept = [len(list(folder.iterdir())) for folder in (tmp_path / "cut" / "memory").glob("*/*/")]
    assert kept == [KEEP] * 3


@pytest.mark.parametrize("algorithm", ["fedavg", "alternating"])
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_kept_moments_go_on_to_the_same_bits(train, algorithm, codec):
    def stop(event):
        if event.kind == "answered" and event.fields["round"] == 3 and event.fields["silo"] != "ash":
            raise KeyboardInterrupt

    asked = {"rounds": 4, "algorithm": algorithm, "moments": "keep"}
    whole = train(codec, "whole", **asked)
    with pytest.raises((KeyboardInterrupt, silotune.errors.Interrupted)):
        train(codec, "cut", watch=stop, **asked)
    one, other = adapter_of(whole), adapter_of(train(codec, "cut", resume=True, **asked))
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    anew = adapter_of(train(codec, "anew", rounds=4, algorithm=algorithm))
    assert any((one[name] != anew[name]).any() for name in one)


def test_another_run_of_the_same_recipe_starts_from_nothing(train, tmp_path):
    one, other = train("int8", "one"), train("int8", "other")
    assert one.folder.identity() != other.folder.identity()
    assert all(value.tobytes() == adapter_of(other)[name].tobytes() for name, value in adapter_of(one).items())


def test_nothing_but_the_adapter_is_kept_that_nobody_asks_for(train, tmp_path):
    train("bfloat16")
    (run,) = (path for path in (tmp_path / "run" / "memory").iterdir() if path.is_dir())
    (kept,) = run.iterdir()
    assert kept.name.startswith("adapter-")


def lose(monkeypatch, silo, round_):
    """Have one answer lost on its way, after the silo has taken note of what it sent."""
    from silotune.errors import InputError

    honest = Worker.answer

    def answer(worker, request):
        reply = honest(worker, request)
        if worker.silo.files.name == silo and request.kind == "train" and request.fields["round"] == round_:
            raise InputError("the line broke")
        return reply

    monkeypatch.setattr(Worker, "answer", answer)


def test_an_answer_that_is_lost_leaves_server_and_silo_agreed(train, tmp_path, monkeypatch):
    """SCAFFOLD's c stays the mean of the silos' own, as it is where every answer counts."""
    lose(monkeypatch, "birch", 2)
    run = train("float32", rounds=4, algorithm="scaffold", weights="uniform", minimum=2)
    slots = checkpoint.latest(run.folder).state.slots
    own = [load_file(max(folder.glob("round-*"))) for folder in (tmp_path / "run" / "memory").glob("*/*/")]
    for name, value in slots.items():
        assert abs(value - sum(one[name] for one in own) / 3).max() < 1e-5, name


def test_what_rounding_took_before_an_answer_was_lost_is_still_owed(train, tmp_path, monkeypatch):
    def owed(name):
        folder = tmp_path / name / "memory"
        files = sorted(folder.glob(f"*/{_digest('birch')}/round-*"))
        return {path.name: load_file(path) for path in files}

    lose(monkeypatch, "birch", 2)
    seen, started = {}, []
    honest = training.begin

    def begin(request, work):
        start = honest(request, work)
        if work.silo.files.name == "birch":
            started.append(start.remembered)
        return start

    def look(event):
        if event.kind == "round":
            seen[event.fields["round"]] = owed("lost")

    monkeypatch.setattr(training, "begin", begin)
    train("int8", "lost", minimum=2, watch=look)
    assert list(seen[2]) == ["round-0001.safetensors", "round-0002.safetensors"]
    assert list(seen[3]) == ["round-0001.safetensors", "round-0003.safetensors"]
    first = seen[1]["round-0001.safetensors"]
    for remembered in started[1:]:  # rounds 2 and 3 both begin with what round 1 left
        assert remembered.keys() == first.keys() and all((remembered[name] == first[name]).all() for name in first)


def test_silos_trained_in_one_pass_remember_as_well(train, tmp_path):
    train("int8", together=3)
    assert len(list((tmp_path / "run" / "memory").glob("*/*/"))) == 3


def test_a_silo_without_a_memory_says_so_before_it_trains(train, monkeypatch):
    honest = Worker.answer
    monkeypatch.setattr(
        Worker, "answer", lambda worker, request: honest(Worker(replace(worker.silo, memory=None)), request)
    )
    with pytest.raises(silotune.errors.FederationError, match="name a folder with `memory` in silo"):
        train("int8")


def test_a_comparison_trains_each_silo_alone_without_rounding_and_the_federation_with_it(train):
    run, exact = train("int8"), train("float32", "exact")
    found, plain = run.compare(), exact.compare()
    alone, other = ({c.silo: c.loss for c in one.matrix if c.model.startswith("alone")} for one in (found, plain))
    assert alone == other and len(alone) == 3
