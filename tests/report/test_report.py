"""The page, the card and the live view of a run."""

import io
import json
import re
import sys

import pytest
from rich.console import Console
from tests.conftest import write_silo
from tests.report.helpers import Page

import silotune
from silotune.federation.events import Event
from silotune.report import live, page
from silotune.report.figures import gather, human_bytes
from silotune.report.live import JsonLines, LiveTable


@pytest.fixture
def done(finished_run):
    return finished_run(report={"samples": 1})


def test_the_page_of_a_real_run_has_the_figures(done):
    parsed = Page(done.folder.report_file.read_text(encoding="utf-8"))
    figures = gather(done.folder)
    for silo in figures.silos:
        assert silo.name in parsed.text and f"{silo.before:.3f}" in parsed.text and f"{silo.after:.3f}" in parsed.text
        assert human_bytes(silo.bytes_up) in parsed.text
    assert "Before and after, in text" in parsed.text and parsed.text.count("Tuned model") == 3
    assert "Differential privacy off" in parsed.text and not parsed.wrong


def test_the_time_of_a_real_run_adds_up(done):
    """One silo after another in this process: the union of their work is its sum, and within the round."""
    for time in gather(done.folder).times:
        work = [sum(silo.get(kind, 0.0) for silo in time.silos.values()) for kind in ("train", "evaluate")]
        assert time.training <= work[0] + 0.05 and time.evaluation <= work[1] + 0.05
        assert 0 <= time.rest <= time.seconds and len(time.silos) == 3


def test_bytes_are_those_of_the_ledger(done):
    figures = gather(done.folder)
    ledger = list(done.folder.ledger())
    for silo in figures.silos:
        assert silo.bytes_up == sum(e["bytes"] for e in ledger if e["silo"] == silo.name and e["direction"] == "up")
    total = sum(line["bytes_up"] for line in figures.rounds)
    joined = sum(e["bytes"] for e in ledger if e["kind"] == "join" and e["direction"] == "up")
    assert sum(silo.bytes_up for silo in figures.silos) == total + joined


def test_every_message_is_counted_for_a_silo_in_the_live_view_as_in_the_final_one(make_recipe, tmp_path):
    """The request to join goes to a node whose silo is not known yet; a run that is gone on with counts what was sent before."""
    table, out = LiveTable(Console(file=io.StringIO())), tmp_path / "run"

    def stop(event):
        if event.kind == "answered":
            raise silotune.Interrupted("stopped")

    with pytest.raises(silotune.Interrupted):
        silotune.train(make_recipe(), out=out, watch=stop)
    run = silotune.train(make_recipe(), resume=out, watch=table)
    ledger, figures = list(run.folder.ledger()), gather(run.folder)
    for direction in ("up", "down"):
        total = sum(entry["bytes"] for entry in ledger if entry["direction"] == direction)
        assert sum(getattr(silo, f"bytes_{direction}") for silo in figures.silos) == total
    for silo in figures.silos:
        assert (table._state.traffic.up(silo.name), table._state.traffic.down(silo.name)) == (
            silo.bytes_up, silo.bytes_down,
        )  # fmt: skip


@pytest.mark.drawn
def test_text_is_escaped_in_the_page(make_recipe, tmp_path):
    write_silo(tmp_path / "odd" / "<b>&$x$", 4, 0, extra="<script>alert(1)</script>")
    write_silo(tmp_path / "odd" / "plain", 4, 9)
    run = silotune.train(make_recipe(data={"silos": "odd/*"}, report={"samples": 1}), out=tmp_path / "run")
    text = run.folder.report_file.read_text(encoding="utf-8")
    assert "<script>" not in text and "<b>" not in text and "&lt;b&gt;&amp;$x$" in text and "alert(1)" in text


def test_the_card_tells_what_was_done(done):
    card = (done.folder.adapter / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nbase_model: ") and "library_name: peft" in card
    for silo in gather(done.folder).silos:
        assert f"| {silo.name} | {silo.train_rows} |" in card
    assert str(done.path) not in card


@pytest.mark.drawn
def test_the_page_can_be_written_again(done):
    before = done.folder.report_file.read_text(encoding="utf-8")
    page.write(done.folder)
    assert done.folder.report_file.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (5.4e8, "540.0 MB"), (3e12, "3000.0 GB")]
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


EVENTS = [
    Event("run", {"path": "/r", "scratch": "/nowhere", "workers": 2, "threads": 1}),
    Event("start", {"rounds": 2, "done": 0, "parameters": 5, "adapter_bytes": 20}),
    Event("joined", {"silo": "ash", "train_rows": 3, "test_rows": 1, "cut": 2, "threads": 1, "base": "b", "key": ""}),
    Event("round", {"round": 0, "evaluation": {"loss": 2.5}, "e_agg": None, "seconds": 1.0}),
    Event("round_start", {"round": 1, "cohort": ["ash"]}),
    Event("asked", {"silo": "ash", "round": 1}),
    Event("message", {"direction": "down", "silo": "ash", "kind": "train", "round": 1, "bytes": 2000, "node": 7}),
    Event("message", {"direction": "up", "silo": "ash", "kind": "train", "round": 1, "bytes": 1000, "node": 7}),
    Event("answered", {"silo": "ash", "round": 1, "steps": 2, "loss": 1.5, "tokens": 30, "seconds": 2.0}),
    Event("left_out", {"silo": "birch", "reason": "evil \x1b[31m"}),
    Event("round", {"round": 1, "evaluation": None, "e_agg": 0.25, "seconds": 3.0}),
    Event("finishing"),
]  # fmt: skip


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with LiveTable(Console(file=stream, width=200)) as table:
        for event in EVENTS:
            table(event)
    assert stream.getvalue().splitlines() == [
        "run folder /r (2 workers, 1 threads each)",
        "silo ash: 3 training rows, 1 held out, 2 rows shortened to fit",
        "base model: held-out loss 2.500, 1.0 s",
        "round 1: ash trained 2 steps, loss 1.500, 15 tokens/s",
        "left out: birch: evil \\x1b[31m",
        "round 1: not evaluated, e_agg 0.250, 3.0 s",
    ]


def test_a_table_where_there_is_one(tmp_path, monkeypatch):
    (tmp_path / "cedar.json").write_text(json.dumps(
        {"silo": "cedar", "round": 2, "kind": "train", "step": 3, "steps": 9, "loss": 0.7, "tokens": 50, "seconds": 2.0}
    ))  # fmt: skip
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    table = LiveTable(console)
    for event in [*EVENTS, Event("joined", {"silo": "cedar", "train_rows": 1, "test_rows": 1, "cut": 0, "threads": 1, "base": "b", "key": ""}),
                  Event("round_start", {"round": 2, "cohort": ["ash", "cedar"]})]:  # fmt: skip
        table(event)
    table._state.scratch = tmp_path
    console.print(table._draw())
    shown = stream.getvalue()
    assert "round 2/2" in shown and "left" in shown and "evil \\x1b[31m" in shown
    assert re.search(r"cedar.*3/9.*25.*0\.700.*training", shown)
    assert re.search(r"ash.*15.*1\.500.*2\.0 kB.*1\.0 kB", shown)


def test_json_lines():
    stream = io.StringIO()
    for event in EVENTS:
        JsonLines(stream)(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [event.kind for event in EVENTS]
    assert "scratch" not in lines[0]


def test_clock():
    assert live._clock(0) == "0:00" and live._clock(125.9) == "2:05"


def test_the_live_table_leaves_the_streams_of_the_process_alone():
    """What Flower and the silos say belongs into the log, not above the table."""
    before = sys.stdout, sys.stderr
    with LiveTable(Console(file=io.StringIO(), force_terminal=True)):
        assert (sys.stdout, sys.stderr) == before
