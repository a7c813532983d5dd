"""The same with Ray: whatever is killed, hangs or is stopped, no process outlives the run and no bit changes."""

import os
import signal
import tempfile
from pathlib import Path

import psutil
import pytest
from tests.real import helpers

pytestmark = pytest.mark.real


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


def test_ctrl_c_saves_says_how_to_go_on_and_leaves_no_process(recipe_file, whole, tmp_path):
    helpers.stopped_by_ctrl_c_and_resumed(recipe_file, tmp_path / "run", "simulation")
    assert helpers.adapter(tmp_path / "run") == whole


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
