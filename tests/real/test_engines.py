"""The same recipe to the same bits: inline, on Flower's simulation engine, and on a real SuperLink over TLS."""

import json

import psutil
import pytest
from tests.real import helpers
from tests.real.consortium import has_part, part_of

import silotune
from silotune.recipe import dump_recipe

pytestmark = pytest.mark.real


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 3, "steps": 3}, wire={"codec": "int8"},
                         federation={"workers": 2, "threads": 1, "algorithm": "scaffold"})  # fmt: skip
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


def test_simulation_gives_the_bits_of_inline_and_leaves_no_process(recipe_file, tmp_path):
    mark = {"SILOTUNE_TEST": str(tmp_path)}  # other tests' processes may be about
    helpers.run("train", recipe_file, "--out", tmp_path / "inline")
    helpers.run(
        "train", recipe_file, "--out", tmp_path / "simulation", "--set", "federation.engine=simulation", env=mark
    )
    assert helpers.adapter(tmp_path / "inline") == helpers.adapter(tmp_path / "simulation")
    left = [p for p in psutil.process_iter(["environ"]) if mark.items() <= (p.info["environ"] or {}).items()]
    assert not helpers.gone(left, 10)
    scored = [
        [(line["round"], line["silo"], line["evaluation"] and line["evaluation"]["loss"]) for line in run.metrics()]
        for run in (silotune.open_run(tmp_path / name) for name in ("inline", "simulation"))
    ]
    assert scored[0] == scored[1] and len(scored[0]) == 4 * 4
    remembered = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "memory").glob("*/*/*")}
        for name in ("inline", "simulation")
    ]
    assert remembered[0] == remembered[1] and len(remembered[0]) == 3


def test_a_consortium_of_two_over_tls_gives_the_bits_of_inline(make_recipe, silos, tiny_base, tmp_path, consortium):
    """A worker and a carrier that are killed are started again; no process is started for a message."""
    recipe = make_recipe(data={"silos": ["silos/ash", "silos/birch"]}, federation={"silos": 2, "threads": 1},
                         wire={"codec": "int8"})  # fmt: skip
    path, out = tmp_path / "recipe.toml", tmp_path / "deployed"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    helpers.run("train", path, "--out", tmp_path / "inline")
    consortium.up()
    houses = {name: consortium.join(name, silos / name, tiny_base) for name in ("ash", "birch")}
    up = {name: consortium.silo(house) for name, house in houses.items()}
    for process, part in zip(up.values(), ("worker", "carrier"), strict=True):
        helpers.until(lambda: has_part(process, f"silo {part}"), process)  # noqa: B023 - it is called in this turn
        part_of(process, f"silo {part}").kill()
    consortium.train(path, out)
    assert helpers.adapter(tmp_path / "inline") == helpers.adapter(out)
    assert "Text apart from the network" in (out / "report.html").read_text(encoding="utf-8")
    for name, process in up.items():
        assert len(helpers.family(process)) == 2, "a worker and a carrier, and nothing for a message"
        own = (houses[name] / "worker" / "ledger.jsonl").read_text().count('"direction": "up"')
        assert own == helpers.ledger_lines(out, silo=name, direction="up") > 0, "both ledgers agree about what left"
    said = helpers.run("compare", out)
    told = {
        (cell["model"], cell["silo"]): cell["loss"] for cell in json.loads((out / "compare.json").read_text())["matrix"]
    }
    known = {(c.model, c.silo): c.loss for c in silotune.open_run(tmp_path / "inline").compare().matrix}
    assert told == pytest.approx({place: known[place] for place in told}, rel=1e-6) and len(told) == 6
    assert "gain of federated over alone" in said and "pooled" not in said
