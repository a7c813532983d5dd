"""A run is followed while it is written: what is new, and only when it is whole."""

import json

import pytest
from tests.report.helpers import Page, comparison, make_run, message

from silotune.errors import RunError
from silotune.federation import run as run_folder
from silotune.report import following as followed
from silotune.report.following import Following, Tail


def test_a_tail_gives_each_line_once_and_waits_for_its_end(tmp_path):
    file = tmp_path / "lines"
    tail = Tail(file)
    assert list(tail.read()) == []
    file.write_bytes(b'{"a": 1}\n{"b": "\xc3')
    assert list(tail.read()) == [{"a": 1}]
    with file.open("ab") as stream:
        stream.write(b'\xa9"}\n\xff torn\n{"c": 3}\n')
    assert list(tail.read()) == [{"b": "é"}, {"c": 3}] and list(tail.read()) == []


def test_the_page_is_drawn_again_when_a_round_is_saved_and_not_before(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", rounds=3, done=1)
    drawn = []
    real = followed.page.content
    monkeypatch.setattr(followed.page, "content", lambda *a: drawn.append(1) or real(*a))
    follow = Following(run)
    first, html = follow.main()
    assert "1 of 3 rounds" in html and follow.main()[0] == first
    message(run, "up", "silo0", "train", 2, 400, node=0, time=1.8e9, fields={"seconds": 4.0})
    assert follow.status()["version"] == first and len(drawn) == 1
    other = make_run(tmp_path / "other", rounds=3, done=2)
    run.metrics_file.write_bytes(other.metrics_file.read_bytes())
    (other.states / "round-0002").rename(run.states / "round-0002")
    version, html = follow.main()
    assert version != first and "2 of 3 rounds" in html and len(drawn) == 2
    (run.path / "compare.json").write_text(json.dumps(comparison(["silo0", "silo1"], [0.1, 0.1], [0.1, 0.1])))
    assert "On its own held-out rows" in follow.main()[1]


def test_what_cannot_be_read_at_this_moment_leaves_the_page_as_it_was(tmp_path):
    run = make_run(tmp_path / "run", rounds=3, done=1)
    follow = Following(run)
    before = follow.main()
    (run.states / "round-0002").mkdir()
    assert follow.main() == before
    with pytest.raises(RunError):
        Following(run).main()


def test_the_page_of_a_run_that_goes_on_has_the_script_and_no_policy_of_its_own(tmp_path):
    follow = Following(make_run(tmp_path / "run"))
    parsed = Page(follow.page())
    assert [attrs for tag, attrs in parsed.tags if tag == "script"] == [{"src": "/watch.js", "defer": None}]
    assert not [attrs for tag, attrs in parsed.tags if attrs.get("http-equiv")]
    ids = parsed.ids()
    assert len(ids) == len(set(ids)) and {"live-words", "chat-form", "report"} <= set(ids) and not parsed.wrong
    assert dict(parsed.tags)["main"]["data-version"] == follow.main()[0]


def test_status_of_a_run_whose_rounds_are_done(tmp_path):
    run = make_run(tmp_path / "run", rounds=3, done=3)
    with run_folder.held(run):
        run.report_file.unlink(missing_ok=True)
        assert "this page are being written" in Following(run).status()["words"]
        run.report_file.write_text("")
        assert Following(run).status()["words"] == "The run has come to its end; a comparison of it goes on."


def test_status_of_a_run_that_nobody_works_on(tmp_path):
    run = make_run(tmp_path / "run", rounds=3, done=1)
    status = Following(run).status()
    assert (status["state"], status["round"], status["rounds"], status["silos"]) == ("stopped", 1, 3, [])
    assert "1 of 3 rounds are saved. Go on with: silotune train --resume run" in status["words"]
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"x")
    status = Following(run).status()
    assert status["state"] == "finished" and "come to its end after 3 rounds" in status["words"]


def test_status_of_a_run_that_goes_on(tmp_path):
    run = make_run(tmp_path / "run", silos=4, rounds=3, done=1)
    names = [f"silo{index}" for index in range(4)]
    message(run, "up", "silo0", "train", 2, 400, node=0, time=1.8e9, fields={"seconds": 4.0})
    for kind in ("train", "evaluate"):
        message(run, "up", "silo1", kind, 2, 400, node=1, time=1.8e9, fields={"seconds": 4.0})
    with run_folder.held(run), run_folder.scratch(run) as scratch:
        at = {
            "silo": "silo2",
            "round": 2,
            "kind": "train",
            "step": 3,
            "steps": 8,
            "loss": 1.25,
            "tokens": 90,
            "seconds": 2.0,
        }
        (scratch / "a.json").write_text(json.dumps(at))
        (scratch / "b.json").write_text(json.dumps({**at, "silo": "silo3", "round": 1}))
        status = Following(run).status()
    assert status["state"] == "running" and status["words"] == "Round 2 of 3 goes on. About 1 min 00 s left."
    assert [silo["silo"] for silo in status["silos"]] == names
    assert [silo["doing"] for silo in status["silos"]] == ["trained", "done", "training", "waiting"]
    assert status["silos"][2] == {"silo": "silo2", "doing": "training", "step": 3, "steps": 8, "loss": 1.25, "rate": 45}


def test_status_before_the_first_round(tmp_path):
    run = make_run(tmp_path / "run", done=-1)
    with run_folder.held(run), run_folder.scratch(run):
        status = Following(run).status()
    assert status["words"] == "The silos load the base model and score it; 2 have said what they hold."
    assert [silo["doing"] for silo in status["silos"]] == ["waiting", "waiting"]


def test_whether_a_run_is_worked_on_is_seen_without_a_trace(tmp_path):
    run = make_run(tmp_path / "run")
    before = sorted(path.name for path in run.path.iterdir())
    assert not run_folder.worked_on(run)
    assert sorted(path.name for path in run.path.iterdir()) == before
    with run_folder.held(run):
        assert run_folder.worked_on(run)
    assert not run_folder.worked_on(run)
    with run_folder.held(run):
        pass  # looking at it has left nothing that would be in the way
