"""Silos of a finished run train alone: what they tell, what they do not, and what is made of it."""

import io
import json
import re
import shutil
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from rich.console import Console
from tests.federation.helpers import Network, client_app, serve_inline
from tests.report.helpers import Page, make_run
from tests.silo.helpers import answer

import silotune
from silotune.compare import comparison
from silotune.errors import FederationError, RunError
from silotune.federation import alone, local
from silotune.federation.events import RunContext
from silotune.federation.messages import FIELDS
from silotune.report import deployed, tables
from silotune.report.page import content
from silotune.wire.envelope import Envelope


@pytest.fixture
def run(finished_run):
    return finished_run()


def ask(run, client=None, silos=None):
    """Ask the silos of a run as a deployment would, on a grid in this process."""
    told, events = [], []
    here = local.prepare_silos(run.folder.recipe()).showing(run.folder.scratch).silos
    local_silos = [replace(silo, scratch=None) for silo in here if silos is None or silo.files.name in silos]
    run_context = RunContext(len(local_silos), fixed=True, watch=events.append)
    serve_inline(
        lambda grid: told.append(alone.ask(grid, run.folder, run_context)), client or client_app(), local_silos
    )
    return *told[0], events


def up(run, kind="alone"):
    return [line for line in run.folder.ledger() if line["kind"] == kind and line["direction"] == "up"]


def test_each_silo_tells_what_compare_finds_where_all_text_is_here(run):
    told, missing, _ = ask(run)
    assert not missing and list(told) == ["ash", "birch", "cedar"]
    by_silos = deployed.compare(run.folder, told, missing)
    here = run.compare()
    known = {(cell.model, cell.silo): cell for cell in here.matrix}
    assert {(cell.model, cell.silo) for cell in by_silos.matrix} == {
        (model, silo) for silo in told for model in ("base", f"alone:{silo}", "federated")
    }
    for cell in by_silos.matrix:
        same = known[cell.model, cell.silo]
        assert (cell.rows, cell.tokens) == (same.rows, same.tokens)
        assert cell.loss == pytest.approx(same.loss, rel=1e-12)
        assert cell.token_accuracy == pytest.approx(same.token_accuracy)
    assert [gain.own for gain in by_silos.gains] == pytest.approx([gain.own for gain in here.gains], abs=1e-6)
    assert by_silos.mean_gain.own == pytest.approx(here.mean_gain.own, abs=1e-6)
    trained = {one.model: one for one in here.budget.models}
    assert all(one == trained[one.model] for one in by_silos.budget.models)


def test_a_silo_alone_keeps_its_moments_as_its_own_federation_would(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 3, "steps": 2, "moments": "keep"})
    run = silotune.train(recipe, out=tmp_path / "run")
    told, _, _ = ask(run)
    here = {cell.silo: cell.loss for cell in run.compare().matrix if cell.model == f"alone:{cell.silo}"}
    assert {name: one.loss / one.tokens for name, one in told.items()} == pytest.approx(here, rel=1e-6)


def test_only_figures_travel_and_the_run_stays_as_it_was(run):
    before = {path: path.read_bytes() for path in (run.folder.metrics_file, *run.folder.adapter.iterdir())}
    told, missing, _ = ask(run)
    assert len(up(run)) == 3
    for line in up(run):
        assert line["tensors"] == [] and line["dtype"] is None and line["bytes"] < 2000
        assert line["fields"].keys() == alone.Alone.__annotations__.keys()
    deployed.compare(run.folder, told, missing)
    assert {path: path.read_bytes() for path in before} == before
    assert comparison.read(run.folder).gains and (run.path / "report.html").exists()


def test_the_time_of_the_rounds_stays_that_of_the_rounds(run):
    before = content(run.folder)["times"]
    ask(run)
    assert content(run.folder)["times"] == before


def test_what_a_silo_said_is_not_asked_again(run):
    def change(request, reply, silo):
        fields = ConfigRecord({"failure": "no power"})
        if silo != "birch" or request.metadata.message_type != "train.alone":
            return None
        return Message(RecordDict({**reply.content, FIELDS: fields}), reply_to=request)

    told, missing, events = ask(run, client_app(change))
    assert list(told) == ["ash", "cedar"] and missing == {"birch": "no power"}
    assert [event.fields["reason"] for event in events if event.kind == "left_out"] == ["no power"]
    found = deployed.compare(run.folder, told, missing)
    assert [gain.silo for gain in found.gains] == ["ash", "cedar"]
    assert "birch is not in it: no power." in found.remarks
    again, missing, _ = ask(run)
    assert list(again) == ["ash", "birch", "cedar"] and not missing and again["ash"] == told["ash"]
    assert [line["silo"] for line in up(run)].count("ash") == 1
    messages = sum(1 for _ in run.folder.ledger())
    assert ask(run)[0] == again and sum(1 for _ in run.folder.ledger()) == messages


def test_a_silo_that_is_not_here_is_named(run):
    told, missing, _ = ask(run, silos={"ash", "cedar"})
    assert list(told) == ["ash", "cedar"] and missing == {"birch": "it did not join"}


def rewrite(run, change):
    """Change lines of metrics.jsonl."""
    lines = [json.dumps(change(line)) + "\n" for line in run.folder.metrics()]
    run.folder.metrics_file.write_text("".join(lines))


def unscored(run, silo, round_):
    gone = (silo, round_)
    rewrite(run, lambda line: line | {"evaluation": None} if (line["silo"], line["round"]) == gone else line)


def test_a_silo_that_has_nothing_to_be_held_against_does_not_train(run):
    unscored(run, "birch", 2)
    told, missing, _ = ask(run)
    assert list(told) == ["ash", "cedar"] and missing == {"birch": "it did not score the last round"}
    assert [line["silo"] for line in up(run)] == ["ash", "cedar"]


def test_a_silo_that_joined_late_is_held_against_its_own_model(run):
    unscored(run, "birch", 0)
    found = deployed.compare(run.folder, *ask(run)[:2])
    assert [gain.silo for gain in found.gains] == ["ash", "birch", "cedar"]
    assert [cell.model for cell in found.matrix if cell.silo == "birch"] == ["alone:birch", "federated"]
    rows = {cell.silo: cell.rows for cell in found.matrix}
    assert [each.rows for each in found.everybody] == [rows["ash"] + rows["cedar"]] * 2
    assert "birch did not score the base, so its rows are not among everybody's." in found.remarks
    tables.show_comparison(found, Console(file=io.StringIO()))


def test_where_nobody_scored_the_base_the_gains_stand_alone(run):
    for silo in ("ash", "birch", "cedar"):
        unscored(run, silo, 0)
    found = deployed.compare(run.folder, *ask(run)[:2])
    assert found.everybody == [] and len(found.gains) == 3
    tables.show_comparison(found, Console(file=io.StringIO()))


def test_a_new_silo_does_not_stand_in_for_one_of_the_run(run, silos, make_recipe):
    """It answers the greeting first; the silos of the run that still think are waited for."""
    shutil.copytree(silos / "ash", silos / "acorn")
    local_silos = sorted(local.prepare_silos(make_recipe()).silos, key=lambda silo: silo.files.name)
    assert [silo.files.name for silo in local_silos] == ["acorn", "ash", "birch", "cedar"]
    grid = Network(client_app(), local_silos)
    looks = iter(range(100))
    grid.slow = lambda message: message.metadata.dst_node_id == 4 and next(looks) < 3
    told, missing = alone.ask(grid, run.folder, RunContext(3, fixed=False, watch=lambda _: None))
    assert list(told) == ["ash", "birch", "cedar"] and not missing


def test_what_was_kept_and_cannot_be_used_is_asked_again(run):
    told, _, _ = ask(run)
    kept = sorted((run.path / "compare").glob("told-*.json"))
    assert len(kept) == 3
    for path, text in zip(
        kept, ("{", '{"rows": 1}', kept[2].read_text().replace('"rows": ', '"rows": 9')), strict=True
    ):
        path.write_text(text)
    again, missing, _ = ask(run)
    assert again.keys() == told.keys() and not missing and len(up(run)) == 6


def test_what_was_told_of_other_rounds_does_not_count(run):
    ask(run)
    rewrite(run, lambda line: line | {"status": "left out"} if (line["silo"], line["round"]) == ("birch", 1) else line)
    told, _, _ = ask(run)
    assert [line["silo"] for line in up(run)].count("birch") == 2 and len(up(run)) == 4
    assert told["birch"].steps == 2


def test_what_is_known_is_shown_though_nobody_is_here(run):
    ask(run, silos={"ash", "cedar"})
    told, missing, _ = ask(run, silos=set())
    assert list(told) == ["ash", "cedar"] and missing == {"birch": "it did not join"}


def test_its_messages_stand_after_the_last_round(run):
    before = content(run.folder)["figures"].traffic
    ask(run)
    after = content(run.folder)["figures"].traffic
    for way in ("up", "down"):
        assert all(after.rounds("ash", way)[r] == before.rounds("ash", way)[r] for r in (1, 2))
        assert after.rounds("ash", way)[3] > 0
    assert {line["round"] for line in up(run)} == {3}


LIES = [
    ({"rows": 99}, "other rows than it announced"),
    ({"tokens": 1}, "other rows than it announced"),
    ({"correct": 10**6}, "tokens were right"),
    ({"steps": 0}, "it took 0 steps alone, and 4 in the run"),
    ({"steps": 10**6}, "it took 1000000 steps alone"),
    ({"train_loss_tokens": 10**9}, "trained on nothing"),
    ({"loss": -1.0}, "field loss is out of range"),
]


@pytest.mark.parametrize(("fields", "says"), LIES)
def test_what_cannot_be_is_not_taken(run, fields, says):
    def change(request, reply, silo):
        if silo != "ash" or request.metadata.message_type != "train.alone":
            return None
        told = {FIELDS: ConfigRecord(dict(reply.content[FIELDS]) | fields)}
        return Message(RecordDict({**reply.content, **told}), reply_to=request)

    told, missing, _ = ask(run, client_app(change))
    assert list(told) == ["birch", "cedar"] and says in missing["ash"]


@pytest.mark.parametrize("rounds", [0, 3, 10**9])
def test_a_server_cannot_ask_for_more_than_the_run(run, rounds):
    job = server_job(run.folder.recipe())
    silo = local.prepare_silos(run.folder.recipe()).silos[0]
    said = answer(Envelope("down", "alone", {"job": job, "rounds": rounds}), silo)
    assert said.failure == f"the server asks for {rounds} rounds alone; the run has 2"


def server_job(recipe):
    from silotune.federation.server import _job

    return _job(recipe, "0" * 16).model_dump_json()


def test_a_run_that_is_not_finished_is_refused(run):
    (run.folder.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match="is not finished"):
        ask(run)


def test_nothing_to_compare_is_said(run):
    with pytest.raises(FederationError, match=r"no silo can be compared \(ash: it is not connected\)"):
        deployed.compare(run.folder, {}, {"ash": "it is not connected"})


def test_a_silo_with_other_rows_is_left_out(run, silos):
    rows = (silos / "ash" / "train.jsonl").read_text()
    (silos / "ash" / "train.jsonl").write_text(rows + rows.splitlines()[0] + "\n")
    told, missing, _ = ask(run)
    assert list(told) == ["birch", "cedar"]
    assert missing == {"ash": "it holds other rows or another base model than when it joined first"}


def test_a_reason_ends_once(tmp_path):
    run = make_run(tmp_path / "run", silos=2)
    found = deployed.compare(run, {"silo0": told_of(20.0)}, {"silo1": "Out of power."})
    assert found.remarks[1:] == ["silo1 is not in it: Out of power."]


def told_of(loss):
    return alone.Alone(3, 10, loss, 5, 4, 18, 10, 1.0)


@pytest.mark.parametrize("count", [1, 3, 30])
def test_the_page_and_the_table_have_a_line_for_each_silo(tmp_path, count):
    """Silo i loses 3 + i with the base, 1 + i / 2 with the shared model and 2 alone; in the order of names."""
    run = make_run(tmp_path / "run", silos=count)
    found = deployed.compare(run, {f"silo{index}": told_of(20.0) for index in range(count)}, {})
    gains = {gain.silo: gain.own for gain in found.gains}
    assert gains == pytest.approx({f"silo{index}": 1 - index / 2 for index in range(count)})
    text = run.report_file.read_text()
    parsed, section = Page(text), text.split('id="matrix"')[1].split("<details")[0]
    assert not parsed.wrong and "pooled" not in section
    assert re.findall(r"<th>([^<]*)</th>", section) == ["rows of", "base", "federated", "alone"]
    assert section.count('<th scope="row">silo') == count
    assert ("Not better off on their own held-out rows" in parsed.text) == (count > 1)
    told = io.StringIO()
    tables.show_comparison(found, Console(width=100, file=told))
    lines = told.getvalue().splitlines()
    for index in range(count):
        _, *figures = next(
            [cell.strip() for cell in line.split("│")[1:-1]] for line in lines if f"silo{index} " in line
        )
        assert figures == [f"{3 + index:.3f}", f"{1 + index / 2:.3f}", "2.000", "18"]
    assert any("tokens trained on, federated" in line for line in lines)
