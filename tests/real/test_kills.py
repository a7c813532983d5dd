"""kill -9 at any moment, then --resume: the adapter is that of a run that nobody touched, to the bit."""

import psutil
import pytest
from tests.real import helpers

pytestmark = pytest.mark.real


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


def test_ctrl_c_saves_says_how_to_go_on_and_leaves_no_process(recipe_file, whole, tmp_path):
    helpers.stopped_by_ctrl_c_and_resumed(recipe_file, tmp_path / "run", "inline")
    assert helpers.adapter(tmp_path / "run") == whole


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
