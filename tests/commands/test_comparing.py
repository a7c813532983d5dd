"""`silotune compare` and `silotune evaluate` as they are called."""

import json
import sys

import pytest

from silotune import cli
from silotune.compare import comparison


@pytest.fixture
def call(monkeypatch, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["silotune", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def run(finished_run):
    return finished_run()


def test_compare_prints_one_object_that_the_folder_keeps(call, run):
    code, out, err = call("compare", run.path, "--json", "--rows", "3,9", "--silos", "ash,cedar")
    assert code == 0, err
    told = json.loads(out)
    assert told == json.loads((run.path / "compare.json").read_text())
    assert [gain["silo"] for gain in told["gains"]] == ["ash", "cedar"]
    assert [point["rows"] for point in told["curve"]] == [3, 9]
    assert "model 1 of 11: base, seed 0" in err and "model 11 of 11: alone:cedar at 9 rows, seed 0" in err


def test_compare_shows_what_it_found(call, run):
    code, out, err = call("compare", run.path, "--rows", "3")
    assert code == 0, err
    words = " ".join(out.split())
    assert "held-out loss, nats per token" in words and "alone:birch" in words and "federated" in words
    assert "gain of federated over alone" in words and "% of what pooling all text gains" in words
    assert "by rows a silo holds" in words and "nowhere between these" in words and "Same start, batch" in words
    found = comparison.read(run.folder)
    assert f"{found.mean_gain.own:+.3f}" in words and f"{found.everybody[0].loss:.3f}" in words


def test_evaluate_shows_what_it_found(call, run, silos):
    code, out, err = call("evaluate", run.path, "--data", silos, "--base")
    assert code == 0, err
    words = " ".join(out.split())
    assert "loss on all rows" in words and "cedar" in words and "base" in words and "everybody" in words
    told = json.loads(call("evaluate", run.path, "--data", silos / "ash" / "test.jsonl", "--json")[1])
    assert [cell["model"] for cell in told["matrix"]] == ["federated"] and told["seen_in_training"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "{tmp}"], "not a run folder"),
        (["compare", "{run}", "--silos", "oak"], "no silo 'oak'"),
        (["compare", "{run}", "--rows", "3,x"], "--rows: 'x' is not a whole number"),
        (["compare", "{run}", "--rows", "99"], "no silo holds so many training rows"),
        (["evaluate", "{run}"], "Missing option '--data'"),
        (["evaluate", "{run}", "--data", "nothing"], "nothing: no such file"),
    ],
)
def test_wrong_input_gives_one_message_and_exit_2(call, run, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*(part.format(run=run.path, tmp=tmp_path) for part in arguments))
    assert code == 2 and says in err and out == "" and len(err.strip().splitlines()) == 1
