"""The same recipe to the same bits: inline, on Flower's simulation engine, and on a real SuperLink over TLS."""

import json
from pathlib import Path

import psutil
import pytest
from tests.real import helpers

import silotune.federation
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


def test_a_superlink_with_two_supernodes_over_tls_gives_the_bits_of_inline(
    make_recipe, silos, tiny_base, tmp_path, deployment
):
    recipe = make_recipe(data={"silos": ["silos/ash", "silos/birch"]}, federation={"silos": 2, "threads": 1},
                         wire={"codec": "int8"})  # fmt: skip
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    helpers.run("train", path, "--out", tmp_path / "inline")
    deployment.superlink()
    for name in ("ash", "birch"):
        deployment.supernode(
            f'data="{silos / name}" base="{tiny_base}" threads=1 min-rows=1 ledger="{tmp_path / name}.jsonl" '
            f'memory="{tmp_path / name}.memory"'
        )
    app = Path(silotune.federation.__file__).parent / "flower_app"
    said = deployment.flwr("run", app, "test", "--stream", "--run-config", f'recipe="{path}" out="{tmp_path}/deployed"')
    assert (tmp_path / "deployed" / "adapter").exists(), said + deployment.logs()
    assert helpers.adapter(tmp_path / "inline") == helpers.adapter(tmp_path / "deployed")
    assert (tmp_path / "deployed" / "report.html").exists()
    for name in ("ash", "birch"):  # each silo's own ledger agrees with the server's about what left it
        own = (tmp_path / f"{name}.jsonl").read_text().count('"direction": "up"')
        assert own == helpers.ledger_lines(tmp_path / "deployed", silo=name, direction="up") > 0
    said = deployment.flwr("run", app, "test", "--stream", "--run-config", f'compare="{tmp_path}/deployed"')
    by_silos = silotune.open_run(tmp_path / "deployed").folder.path / "compare.json"
    assert by_silos.exists(), said + deployment.logs()
    told = {(cell["model"], cell["silo"]): cell["loss"] for cell in json.loads(by_silos.read_text())["matrix"]}
    known = {(c.model, c.silo): c.loss for c in silotune.open_run(tmp_path / "inline").compare().matrix}
    assert told == pytest.approx({place: known[place] for place in told}, rel=1e-6) and len(told) == 6
    assert "gain of federated over alone" in said and "pooled" not in said
