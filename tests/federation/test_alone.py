"""Silos of a finished run train alone: what they tell, what they do not, and what is made of it."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from tests.federation.helpers import client_app

import silotune
from silotune.errors import FederationError, RunError
from silotune.federation import alone, local
from silotune.federation.client import answer
from silotune.federation.events import Venue
from silotune.federation.inline import run_inline
from silotune.federation.messages import FIELDS
from silotune.report import comparison, deployed
from silotune.report.page import content
from silotune.wire.envelope import Envelope


@pytest.fixture
def run(make_recipe, tmp_path):
    return silotune.train(make_recipe(), out=tmp_path / "run")


def ask(run, client=None, silos=None):
    """Ask the silos of a run as a deployment would, on a grid in this process."""
    told, events = [], []
    crew = [silo for silo in local.muster(run.folder.recipe()).silos if silos is None or silo.files.name in silos]
    venue = Venue(len(crew), fixed=True, watch=events.append)
    run_inline(lambda grid: told.append(alone.ask(grid, run.folder, venue)), client or client_app(), crew)
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
        assert cell.loss == pytest.approx(same.loss, rel=1e-6)
        assert cell.token_accuracy == pytest.approx(same.token_accuracy)
    assert [gain.own for gain in by_silos.gains] == pytest.approx([gain.own for gain in here.gains], abs=1e-6)
    assert by_silos.mean_gain.own == pytest.approx(here.mean_gain.own, abs=1e-6)
    trained = {one.model: one for one in here.budget.models}
    assert all(one == trained[one.model] for one in by_silos.budget.models)


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
    assert list(told) == ["ash", "cedar"] and missing == {"birch": "it is not connected"}


def test_what_is_kept_and_damaged_is_named(run):
    ask(run)
    kept = sorted((run.path / "compare").glob("told-*.json"))
    kept[0].write_text('{"rows": 1}')
    with pytest.raises(RunError, match=r"told-\w+\.json: cannot be read\. Remove it, and silo '\w+' is asked again"):
        ask(run)
    kept[0].unlink()
    assert list(ask(run)[0]) == ["ash", "birch", "cedar"] and len(kept) == 3


LIES = [
    ({"rows": 99}, "other rows than it announced"),
    ({"tokens": 1}, "other rows than it announced"),
    ({"correct": 10**6}, "tokens were right"),
    ({"steps": 0}, "trained on nothing"),
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
    silo = local.muster(run.folder.recipe()).silos[0]
    said = answer(Envelope("down", "alone", {"job": job, "rounds": rounds}), silo)
    assert said.failure == f"the server asks for {rounds} rounds alone; the run has 2"


def server_job(recipe):
    from silotune.federation.server import _job

    return _job(recipe).model_dump_json()


def test_a_run_that_is_not_finished_is_refused(run):
    (run.folder.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match="is not finished"):
        ask(run)


def test_nothing_to_compare_is_said(run):
    with pytest.raises(FederationError, match=r"no silo can be compared \(ash: it is not connected\)"):
        deployed.compare(run.folder, {}, {"ash": "it is not connected"})


def test_a_silo_with_other_rows_is_refused(run, silos):
    rows = (silos / "ash" / "train.jsonl").read_text()
    (silos / "ash" / "train.jsonl").write_text(rows + rows.splitlines()[0] + "\n")
    with pytest.raises(RunError, match=r"ash.*other rows"):
        ask(run)
