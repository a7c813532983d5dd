"""kill -9 at any moment, then --resume: the adapter is that of a run that nobody touched, to the bit."""

import os
import re
import signal
import tempfile
from pathlib import Path

import psutil
import pytest
from tests.real import helpers

from silotune.recipe import dump_recipe

pytestmark = pytest.mark.real


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 4, "steps": 6}, federation={"workers": 2, "threads": 1})
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


@pytest.fixture
def untouched(trained_once):
    """The folder of the same run, which nobody touched."""
    return trained_once(training={"rounds": 4, "steps": 6}) / "run"


@pytest.fixture
def whole(untouched):
    return helpers.adapter(untouched)


MOMENTS = {
    "before anything is saved": lambda run: (run / "ledger.jsonl").exists(),
    "while silos train in round 1": lambda run: helpers.ledger_lines(run, kind="train", direction="down", round=1) >= 2,
    "between updates of round 2": lambda run: helpers.ledger_lines(run, kind="train", direction="up", round=2) >= 1,
    "after the last update of round 2": lambda run: (
        helpers.ledger_lines(run, kind="train", direction="up", round=2) >= 3
    ),
    "while round 3 is being saved, or just after": lambda run: (
        helpers.rounds(run) >= 3 or (helpers.rounds(run) == 2 and any((run / "state").glob(".unfinished-*")))
    ),
    "after round 4 is saved": lambda run: helpers.rounds(run) == 4,
}


def test_inline_killed_at_many_moments(recipe_file, whole, untouched, tmp_path):
    """One run that is killed at every moment of the list, one after the other, and still comes to the same end."""
    run = tmp_path / "run"
    for name, moment in MOMENTS.items():
        process = helpers.start("train", recipe_file, *(["--resume", run] if run.exists() else ["--out", run]))
        helpers.until(lambda moment=moment: moment(run), process)
        helpers.kill(process)
        assert not (run / "report.html").exists(), name
    helpers.run("train", "--resume", run)
    assert helpers.adapter(run) == whole
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((untouched / "metrics.jsonl").read_text().splitlines())
    assert helpers.ledger_lines(run) > helpers.ledger_lines(untouched), (
        "what was sent before a kill stays in the ledger"
    )


def ray_workers(process):
    return [
        child for child in helpers.family(process) if "ClientAppActor" in " ".join(child.cmdline() or [child.name()])
    ]


def test_simulation_killed_and_resumed(recipe_file, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(own_tmp := Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))))
    run = tmp_path / "run"
    process = helpers.start("train", recipe_file, "--out", run, "--set", "federation.engine=simulation")
    helpers.until(lambda: helpers.ledger_lines(run, kind="train", direction="up", round=2) >= 1, process)
    family = helpers.family(process)
    assert family
    helpers.kill(process)
    assert not helpers.gone(family), "Ray's processes outlived the run that was killed"
    assert not list(own_tmp.iterdir()), "folders outlived the run that was killed"
    helpers.run("train", recipe_file, "--resume", run, "--set", "federation.engine=simulation")
    assert helpers.adapter(run) == whole


def test_a_rays_worker_that_is_killed_is_replaced_and_changes_no_bit(recipe_file, whole, tmp_path):
    run = tmp_path / "run"
    process = helpers.start("train", recipe_file, "--out", run, "--set", "federation.engine=simulation")
    helpers.until(lambda: helpers.ledger_lines(run, kind="train", direction="down", round=2) >= 3, process)
    workers = ray_workers(process)
    assert workers
    for worker in workers:
        worker.kill()
    out, err = process.communicate(timeout=helpers.PATIENCE)
    assert process.returncode == 0, err + out
    assert helpers.adapter(run) == whole
    assert "left out" not in err


@pytest.mark.parametrize("engine", ["inline", "simulation"])
def test_ctrl_c_saves_says_how_to_go_on_and_leaves_no_process(recipe_file, whole, tmp_path, engine):
    run = tmp_path / "run"
    process = helpers.start("train", recipe_file, "--out", run, "--set", f"federation.engine={engine}")
    helpers.until(lambda: helpers.ledger_lines(run, kind="train", direction="up", round=2) >= 1, process)
    family = helpers.family(process)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=helpers.PATIENCE)
    assert process.returncode == 130
    assert (
        re.search(r"silotune: Stopped by the user; round [12] is saved\. Go on with", err)
        and f"--resume {run}" in err
        and "Traceback" not in err
    )
    assert not helpers.gone(family)
    helpers.run("train", recipe_file, "--resume", run, "--set", f"federation.engine={engine}")
    assert helpers.adapter(run) == whole


def test_two_processes_never_write_one_run(recipe_file, tmp_path):
    run = tmp_path / "run"
    process = helpers.start("train", recipe_file, "--out", run)
    helpers.until(lambda: helpers.rounds(run) >= 0, process)
    psutil.Process(process.pid).suspend()
    try:
        second = helpers.start("train", recipe_file, "--resume", run)
        _, err = second.communicate(timeout=helpers.PATIENCE)
        assert second.returncode == 2 and "another process is working on this run" in err
    finally:
        psutil.Process(process.pid).resume()
        helpers.kill(process)


def hang_one(process, run):
    """Stop the worker that trains in round 1 when another has answered, and return it."""
    helpers.until(lambda: helpers.ledger_lines(run, kind="train", direction="up", round=1) >= 1, process)
    busy: list[psutil.Process] = []
    helpers.until(
        lambda: busy.extend(w for w in ray_workers(process) if w.cmdline()[0].endswith(".run")) or busy, process
    )
    busy[0].suspend()
    return busy[0]


HUNG = ("--set", "federation.engine=simulation", "--set", "federation.minimum=1", "--set", "training.steps=40",
        "--set", "training.rounds=2", "--set")  # fmt: skip


def test_a_worker_that_hangs_delays_no_end(recipe_file, tmp_path):
    run = tmp_path / "run"
    process = helpers.start("train", recipe_file, "--out", run, *HUNG, "federation.round_timeout=15")
    worker = hang_one(process, run)
    family = helpers.family(process)
    out, err = helpers.ended(process)
    assert process.returncode == 0, err + out
    assert "no answer within 15 s" in err and helpers.rounds(run) == 2 and (run / "report.html").exists()
    assert worker in family and not helpers.gone(family)


def test_one_ctrl_c_ends_a_run_with_a_worker_that_hangs(recipe_file, tmp_path):
    run = tmp_path / "run"
    process = helpers.start("train", recipe_file, "--out", run, *HUNG, "federation.round_timeout=3000")
    hang_one(process, run)
    family = helpers.family(process)
    os.kill(process.pid, signal.SIGINT)
    _, err = helpers.ended(process)
    assert process.returncode == 130, err
    assert "Stopped by the user; the score of the base model is saved, and no round yet. Go on with" in err
    assert not helpers.gone(family)
