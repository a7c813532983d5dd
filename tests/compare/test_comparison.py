"""compare.json, read and refused, and what the page makes of it."""

import pytest
from tests.report.helpers import add_comparison, comparison, make_run

from silotune.compare import comparison as compared
from silotune.compare.comparison import Comparison
from silotune.errors import RunError
from silotune.report.matrix import intervals, matrix, sides


def test_none_without_a_file(tmp_path):
    assert compared.read(make_run(tmp_path / "run")) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"gains": []}'])
def test_what_is_no_comparison_is_refused(tmp_path, text):
    run = make_run(tmp_path / "run")
    compared.path(run).write_text(text)
    with pytest.raises(RunError, match=r"compare\.json: cannot be read.*silotune compare"):
        compared.read(run)


def test_means_over_seeds_and_the_order_of_models(tmp_path):
    run = make_run(tmp_path / "run")
    found = comparison(["x", "y"], [0.0, 0.0], [0.0, 0.0], seeds=[0, 1])
    again = [{**cell, "seed": 1, "loss": cell["loss"] + 2, "token_accuracy": 1.0} for cell in found["matrix"]]
    found["matrix"] = [*reversed(found["matrix"]), *again, {**found["matrix"][0], "model": "personal:x"}]
    add_comparison(run, found)
    made = matrix(compared.read(run))
    assert made.models == ["base", "federated", "pooled", "personal:x", "alone:y", "alone:x"]
    assert made.figure("base", "x").loss == 4.0 and made.figure("base", "x").token_accuracy == 0.75
    assert made.figure("base", None).loss == 3.0 and made.figure("personal:x", "y") is None
    assert made.lowest("x") == 2.0 and made.lowest(None) == 1.0


def test_who_is_better_off_on_which_rows():
    found = Comparison.model_validate(comparison(["a", "b", "c"], [0.2, -0.1, 0.0], [0.3, 0.2, 0.1]))
    own, everybody = sides(found)["own"], sides(found)["everybody"]
    assert (own.better, own.of, own.worse) == (1, 3, [("b", -0.1), ("c", 0.0)]), "no gain is not better off"
    assert own.mean == pytest.approx(0.1 / 3) and own.interval == (-0.5, 0.5)
    assert (everybody.better, everybody.worse) == (3, []) and everybody.mean == pytest.approx(0.2)


def test_intervals_over_seeds_come_before_those_over_rows():
    found = comparison(["a"], [0.1], [0.1])
    found["intervals"][0]["t"] = [0.0, 0.2]
    known = intervals(Comparison.model_validate(found))
    assert known["a", "own"] == (0.0, 0.2) and known["a", "everybody"] == (-0.5, 0.5)
