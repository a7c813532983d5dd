"""Trackers hold the figures of metrics.jsonl, through their own libraries and readers."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.helpers import make_run

import silotune
from silotune.errors import Interrupted, RecipeError
from silotune.recipe import check_recipe
from silotune.report import trackers
from silotune.report.live import LiveTable
from silotune.report.trackers import figures_of, safe


def expected(run):
    """Figures by name and round, straight from the lines."""
    found = {}
    for line in run.metrics():
        if line["silo"]:
            values = {"held_out_loss": (line["evaluation"] or {}).get("loss"), "train_loss": (line["train"] or {}).get("loss"),
                      "token_accuracy": (line["evaluation"] or {}).get("token_accuracy"), "seconds": (line["train"] or {}).get("seconds"),
                      "bytes_up": line["bytes_up"], "bytes_down": line["bytes_down"]}  # fmt: skip
            values = {f"{name}/silo/{line['silo']}": value for name, value in values.items()}
        else:
            values = {"held_out_loss/all": line["evaluation"]["loss"], "token_accuracy/all": line["evaluation"]["token_accuracy"],
                      "train_loss/all": line["train_loss"], "e_agg": line["e_agg"], "seconds/all": line["seconds"],
                      "bytes_up/all": line["bytes_up"], "bytes_down/all": line["bytes_down"], "silos": line["silos"],
                      "silos_left_out": len(line["left_out"])}  # fmt: skip
        found |= {(name, line["round"]): value for name, value in values.items() if value is not None}
    return found


def stop_after(round_):
    def watch(event):
        if event.kind == "round" and event.fields["round"] == round_:
            raise Interrupted("stopped")

    return watch


def test_the_figures_of_a_round_are_those_of_its_lines(tmp_path):
    run = make_run(tmp_path / "run")
    lines = run.metrics()
    found = {
        (name, n): v for n in range(3) for name, v in figures_of([one for one in lines if one["round"] == n]).items()
    }
    assert found == expected(run) and len(found) > 30


@pytest.mark.parametrize("name", ["ash", "north clinic-2.b"])
def test_plain_names_stay(name):
    assert safe(name) == name


def test_other_names_are_told_apart():
    names = ["a/b", "a:b", "a_b", "../../etc", ".hidden", "診療所", "診療/所"]
    made = [safe(name) for name in names]
    assert len(set(made)) == len(names) and not any(set("/:\\") & set(one) or one.startswith(".") for one in made)
    assert safe("診療所") == "診療所"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_refused_before_anything_happens(make_recipe, tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(RecipeError, match=rf'trackers\.{name}: .*pip install "silotune\[{name}\]"'):
        silotune.train(make_recipe(trackers={name: True}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_that_would_be_passed_over_are_refused():
    for settings in ({"mlflow_uri": "sqlite:///x.db"}, {"wandb_mode": "online"}):
        with pytest.raises(RecipeError, match="trackers"):
            check_recipe({"trackers": settings}, "test")


class Kept:
    """Keeps what it is told; fails where it is asked to."""

    identity = None

    def __init__(self, told, fails_at=None):
        self.told, self.rounds, self.complete, self.fails_at = told, {}, None, fails_at

    def write(self, round_, figures):
        if round_ == self.fails_at:
            raise OSError("no space left on \x1b device")
        self.rounds[round_] = figures

    def close(self, complete):
        self.complete = complete


@pytest.fixture
def kept(monkeypatch):
    """Trackers in place of TensorBoard's, one for each time that the run is begun or gone on with."""
    made = []
    monkeypatch.setattr(trackers, "OPENERS", {"tensorboard": lambda run, recipe, before: made.append(Kept(before.told)) or made[-1]})  # fmt: skip
    return made


def test_a_run_that_is_gone_on_with_tells_each_round_once(make_recipe, tmp_path, kept):
    """Stopped after round 1 was saved, before the tracker heard of it: the tracker gets it when the run goes on."""
    recipe, out = make_recipe(trackers={"tensorboard": True}), tmp_path / "run"
    with pytest.raises(Interrupted):
        silotune.train(recipe, out=out, watch=stop_after(1))
    run = silotune.train(recipe, resume=out)
    first, second = kept
    assert (list(first.rounds), first.complete) == ([0], False)
    assert (second.told, list(second.rounds), second.complete) == (0, [1, 2], True)
    told = {
        (name, n): value for n, figures in (first.rounds | second.rounds).items() for name, value in figures.items()
    }
    assert told == expected(run.folder)


def test_a_tracker_that_fails_is_let_go_and_the_run_goes_on(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "OPENERS", {"tensorboard": lambda *_: Kept(-1, fails_at=1)})
    stream = io.StringIO()
    with LiveTable(Console(file=stream, width=200)) as table:
        run = silotune.train(make_recipe(trackers={"tensorboard": True}), out=tmp_path / "run", watch=table)
    assert run.folder.finished()
    said = [line for line in stream.getvalue().splitlines() if "tensorboard" in line]
    assert said == ["tensorboard is not written any more: OSError: no space left on \\x1b device; the run goes on"]


def test_a_tracker_that_cannot_be_opened_is_told_too(make_recipe, tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(trackers, "OPENERS", {"tensorboard": refuse})
    events = []
    silotune.train(make_recipe(trackers={"tensorboard": True}), out=tmp_path / "run", watch=events.append)
    assert [dict(event.fields) for event in events if event.kind == "tracker_failed"] == [
        {"tracker": "tensorboard", "reason": "RuntimeError: no"}
    ]


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return [(name, point.step, point.value) for name in read.Tags()["scalars"] for point in read.Scalars(name)]


def test_tensorboard_reads_what_the_metrics_say(make_recipe, tmp_path):
    pytest.importorskip("tensorboard")
    recipe, out = make_recipe(trackers={"tensorboard": True}), tmp_path / "run"
    with pytest.raises(Interrupted):
        silotune.train(recipe, out=out, watch=stop_after(1))
    run = silotune.train(recipe, resume=out)
    found = scalars(out / "tensorboard")
    assert len(found) == len({(name, step) for name, step, _ in found}), "no point twice"
    assert {(name, step): value for name, step, value in found} == pytest.approx(expected(run.folder), rel=1e-6)
    assert not (Path.cwd() / "runs").exists() or not list((Path.cwd() / "runs").glob("events*"))


def test_mlflow_reads_what_the_metrics_say(make_recipe, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    recipe, out = make_recipe(trackers={"mlflow": True}), tmp_path / "run"
    with pytest.raises(Interrupted):
        silotune.train(recipe, out=out, watch=stop_after(1))
    run = silotune.train(recipe, resume=out)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("test")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.status == "FINISHED" and kept.data.params["lora.r"] == "2"
    names = {name for name, _ in expected(run.folder)}
    found = [(name, p.step, p.value) for name in names for p in client.get_metric_history(kept.info.run_id, name)]
    assert len(found) == len(expected(run.folder)), "no point twice"
    assert {(name, step): value for name, step, value in found} == pytest.approx(expected(run.folder))
    assert not list(tmp_path.glob("mlruns")) and os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_wandb_keeps_an_offline_run(make_recipe, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    recipe, out = make_recipe(trackers={"wandb": True}), tmp_path / "run"
    with pytest.raises(Interrupted):
        silotune.train(recipe, out=out, watch=stop_after(1))
    run = silotune.train(recipe, resume=out)
    files = sorted((out / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1, "both parts have the run's id"
    points = [point for file in files for point in wandb_points(file.read_bytes())]
    told = [(name, step, value) for name, step, value in points if (name, step) in expected(run.folder)]
    assert {(name, step): value for name, step, value in told} == pytest.approx(expected(run.folder))
    assert len(told) == len(expected(run.folder)), "no point twice"
    assert not (tmp_path / "wandb").exists() and os.environ["WANDB_ERROR_REPORTING"] == "false"


def wandb_points(content):
    """(name, step, value) of a .wandb file: a LevelDB log behind seven bytes, with a record of protobuf each."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, data = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record, data = Record.FromString(data), b""
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            yield from ((name, items["round"], value) for name, value in items.items())
