"""Answers of runs: each with its own adapter, also side by side."""

import json
from itertools import chain, zip_longest

import pytest

import silotune
from silotune.errors import ModelError
from silotune.inference import samples

SAMPLING = silotune.Sampling(max_tokens=12)


@pytest.fixture
def runs(finished_run):
    changes = [{}, {"seed": 5, "training": {"steps": 12, "learning_rate": 0.3}}]
    return [finished_run(f"run{number}", **change) for number, change in enumerate(changes)]


def test_two_answers_read_side_by_side_are_those_read_alone(runs):
    alone = [
        [list(run.stream("Where is the key?", sampling=SAMPLING, base=base)) for base in (False, True)] for run in runs
    ]
    assert alone[0][0] != alone[1][0] and alone[0][1] == alone[1][1]
    streams = [run.stream("Where is the key?", sampling=SAMPLING, base=base) for run in runs for base in (False, True)]
    together = list(zip_longest(*streams))
    expected = list(zip_longest(*chain.from_iterable(alone)))
    assert together == expected


def test_an_adapter_that_was_cut_off_or_is_another_ones_is_told(runs, make_recipe, tmp_path):
    file = runs[0].folder.adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors: the adapter cannot be read"):
        runs[0].answer("Where is the key?")
    other = silotune.train(make_recipe(lora={"r": 4}), out=tmp_path / "other")
    file.write_bytes((other.folder.adapter / file.name).read_bytes())
    with pytest.raises(ModelError, match="does not fit the base model"):
        runs[0].answer("Where is the key?")
    file.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        runs[0].answer("Where is the key?")


def test_rows_that_leaked_into_training_text_are_no_samples_where_they_are_dropped(make_recipe, silos, tmp_path):
    """The first row of a silo's test is also one that it trains on."""
    leaked = (silos / "ash" / "train.jsonl").read_text().splitlines(True)[4]
    tests = (silos / "ash" / "test.jsonl").read_text()
    (silos / "ash" / "test.jsonl").write_text(leaked + tests)
    shown = {}
    for drop in (False, True):
        run = silotune.train(make_recipe(data={"drop_leaks": drop}, report={"samples": 1}), out=tmp_path / f"run{drop}")
        shown[drop] = [found["question"] for found in samples.read(run.folder) if found["silo"] == "ash"]
        assert ("are passed over" in run.folder.report_file.read_text()) is drop
    assert shown == {
        drop: [json.loads(text.splitlines()[0])["instruction"]] for drop, text in ((False, leaked), (True, tests))
    }
