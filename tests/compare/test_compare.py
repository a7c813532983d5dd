"""`compare` on the tiny model: what it trains, what it counts, that it goes on, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.conftest import WORDS, write_silo

import silotune
from silotune.compare import baselines, comparison
from silotune.compare.comparison import Comparison
from silotune.errors import DivergedError, FederationError, InputError, Interrupted, RunError
from silotune.report import plots
from silotune.training import loop as training
from silotune.training.local_run import TrainingTask

SILOS = ("ash", "birch", "cedar")


@pytest.fixture
def run(finished_run):
    return finished_run()


def cells(found, model):
    return {cell.silo: cell for cell in found.matrix if cell.model == model}


def everybody(found, model, seed=0):
    (row,) = [row for row in found.everybody if (row.model, row.seed) == (model, seed)]
    return row


def write_labelled(folder, rows, offset):
    """A silo whose answers are one of three labels."""
    folder.mkdir(parents=True)
    for split, count, shift in (("train", rows, 0), ("test", 4, 500)):
        lines = []
        for index in range(count):
            number = offset + shift + index
            label = ("north", "south", "under the stone")[number % 3]
            question = f"Where is the {WORDS[number % 17]} of room {number} ?"
            lines.append(json.dumps({"instruction": question, "response": label, "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def test_the_matrix_has_every_model_on_every_silo(run):
    found = run.compare()
    names = ["base", *(f"alone:{silo}" for silo in SILOS), "pooled", "federated"]
    assert [(cell.model, cell.silo) for cell in found.matrix] == [(name, silo) for name in names for silo in SILOS]
    assert [row.model for row in found.everybody] == names == [one.model for one in found.budget.models]
    for row in found.everybody:
        each = cells(found, row.model).values()
        assert row.rows == sum(cell.rows for cell in each) == 9 and row.tokens == sum(cell.tokens for cell in each)
        assert row.loss == pytest.approx(sum(cell.loss * cell.tokens for cell in each) / row.tokens)
        correct = sum(cell.token_accuracy * cell.tokens for cell in each)
        assert row.token_accuracy == pytest.approx(correct / row.tokens)
    assert len({row.loss for row in found.everybody}) == len(names) and all(
        cell.scores is None for cell in found.matrix
    )


def test_base_and_federated_are_what_the_run_measured(run):
    found, lines = run.compare(), run.metrics()
    for model, round_ in (("base", 0), ("federated", 2)):
        for silo, cell in cells(found, model).items():
            (line,) = [line for line in lines if line["silo"] == silo and line["round"] == round_]
            measured = line["evaluation"]
            assert (cell.rows, cell.tokens) == (measured["rows"], measured["tokens"])
            assert cell.loss == pytest.approx(measured["loss"], rel=1e-12)
            assert cell.token_accuracy == pytest.approx(measured["token_accuracy"], rel=1e-12)
        (line,) = [line for line in lines if line["silo"] is None and line["round"] == round_]
        assert everybody(found, model).loss == pytest.approx(line["evaluation"]["loss"], rel=1e-6)


def test_alone_is_a_federation_of_that_silo(run, make_recipe, tmp_path, silos):
    run.compare()
    by_hand = silotune.train(
        make_recipe(data={"silos": [str(silos / "birch")]}, federation={"minimum": 1}), out=tmp_path / "one"
    )
    (folder,) = (run.path / "compare").glob("alone-birch-*")
    one, other = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (folder, by_hand.path))
    for name, value in one.items():  # a federation rounds each round's update once
        assert np.abs(value - other[name]).max() <= 1e-6
    (line,) = [line for line in by_hand.metrics() if line["silo"] == "birch" and line["round"] == 2]
    assert cells(run.compare(), "alone:birch")["birch"].loss == pytest.approx(line["evaluation"]["loss"], rel=1e-6)


def test_the_budget_is_the_federations_own(run):
    models = {one.model: one for one in run.compare().budget.models}
    assert (models["base"].steps, models["base"].tokens, models["base"].train_rows) == (0, 0, 0)
    for silo, rows in zip(SILOS, (9, 6, 4), strict=True):
        trained = [line["train"] for line in run.metrics() if line["silo"] == silo and line["train"]]
        alone = models[f"alone:{silo}"]
        assert (alone.train_rows, alone.rounds, alone.steps) == (rows, 2, 4)
        assert alone.tokens == sum(one["tokens"] for one in trained)  # the same rows, in the same order
    assert models["federated"].tokens == sum(models[f"alone:{silo}"].tokens for silo in SILOS)
    assert (models["pooled"].steps, models["federated"].steps, models["pooled"].train_rows) == (12, 12, 19)
    assert models["pooled"].tokens == pytest.approx(models["federated"].tokens, rel=0.3)


def test_pooled_is_local_training_on_all_rows(run):
    from silotune.compare.context import open_context
    from silotune.data.silos.joined import Joined
    from silotune.model import lora
    from silotune.model.adapter import initial_adapter
    from silotune.model.base import published_name

    run.compare()
    context = open_context(run.folder)
    spec = context.resident.spec
    expected = initial_adapter(spec, baselines.derive(0, "adapter"))
    rows = Joined(tuple(context.corpus(silo).train for silo in SILOS))
    assert len(rows) == 19 and [len(rows[i].ids) for i in range(19)] == rows.lengths.tolist()
    settings = context.recipe.training.model_copy(update={"steps": 6})
    for round_ in (1, 2):
        task = TrainingTask("pooled", rows, expected, spec.names)
        _, expected = training.train_round(context.resident, context.forward_plan, task, settings, 0, round_)
    (folder,) = (run.path / "compare").glob("pooled-*")
    name = published_name(context.recipe.model.base)
    found = lora.load(folder / "adapter", spec, context.recipe.lora, name)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_gains_are_two_numbers_and_their_means(run):
    found = run.compare()
    fed, base, pooled = (everybody(found, name).loss for name in ("federated", "base", "pooled"))
    for gain in found.gains:
        alone = cells(found, f"alone:{gain.silo}")[gain.silo].loss
        assert gain.own == pytest.approx(alone - cells(found, "federated")[gain.silo].loss)
        assert gain.everybody == pytest.approx(everybody(found, f"alone:{gain.silo}").loss - fed)
        assert gain.own_accuracy is None
    assert found.mean_gain.own == pytest.approx(np.mean([gain.own for gain in found.gains]))
    assert found.mean_gain.everybody == pytest.approx(np.mean([gain.everybody for gain in found.gains]))
    assert pooled < base and found.share_of_pooled_gain == pytest.approx((base - fed) / (base - pooled))
    assert [(one.silo, one.on) for one in found.intervals] == [
        (silo, on) for silo in (*SILOS, None) for on in ("own", "everybody")
    ]
    for one in found.intervals:
        assert one.bootstrap[0] <= one.gain <= one.bootstrap[1] and one.t is None


def test_what_is_done_is_not_done_again(run, monkeypatch):
    first = run.compare()
    monkeypatch.setattr(training, "train_round", None)
    monkeypatch.setattr("silotune.compare.context.tuner", None)
    monkeypatch.setattr("silotune.compare.measured.score_rows", None)
    assert run.compare() == first == comparison.read(run.folder)
    told = json.loads((run.path / "compare.json").read_text())
    assert told.keys() >= {"budget", "matrix", "gains", "share_of_pooled_gain", "seeds", "intervals", "curve"}
    assert told["matrix"][0].keys() >= {"model", "silo", "seed", "rows", "tokens", "loss", "token_accuracy", "scores"}


@pytest.mark.parametrize("model", ["alone:birch", "pooled", "federated"])
def test_a_comparison_that_was_cut_short_goes_on_to_the_same_figures(run, tmp_path, model):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    expected = run.compare(seeds=2)
    begun, stopped = [], False

    def stop(event):
        nonlocal stopped
        if event.kind == "model":
            begun.append((event.fields["model"], event.fields["seed"]))
        if event.kind == "training" and event.fields["model"] == model and event.fields["round"] == 1 and not stopped:
            stopped = True
            raise Interrupted("stopped")

    again = silotune.open_run(copy)
    with pytest.raises(Interrupted, match="Go on with the same command"):
        again.compare(seeds=2, watch=stop)
    assert not (copy / "compare.json").exists()
    rounds = []
    found = again.compare(seeds=2, watch=lambda e: rounds.append(e.fields) if e.kind == "training" else None)
    assert found == expected
    assert next(one["round"] for one in rounds if one["model"] == model) == 2  # round 1 is not trained again


def test_another_recipe_another_text_and_other_seeds_are_other_models(run, make_recipe, tmp_path, silos):
    run.compare()
    before = {path.name for path in (run.path / "compare").iterdir()}
    other = silotune.train(make_recipe(training={"rounds": 2, "steps": 3}), out=tmp_path / "other")
    other.compare()
    after = {path.name for path in (other.path / "compare").iterdir()}
    assert {name for name in before & after if not name.startswith("base-")} == set()


def test_several_seeds_train_again_on_the_same_rows(run):
    found = run.compare(seeds=3)
    assert found.seeds == [0, 1, 2]
    federated = [row.loss for row in found.everybody if row.model == "federated"]
    assert len(federated) == 3 and len(set(federated)) == 3
    assert {(cell.rows, cell.tokens) for cell in found.matrix if cell.silo == "ash"} == {
        (cells(found, "base")["ash"].rows, cells(found, "base")["ash"].tokens)
    }
    each = [
        [cell.loss for cell in found.matrix if (cell.model, cell.silo) == (name, "ash")]
        for name in ("alone:ash", "federated")
    ]
    gains = np.array(each[0]) - np.array(each[1])
    (own,) = [one for one in found.intervals if (one.silo, one.on) == ("ash", "own")]
    half = 4.30265 * gains.std(ddof=1) / np.sqrt(3)
    assert own.gain == pytest.approx(gains.mean()) and own.t == pytest.approx(
        (own.gain - half, own.gain + half), rel=1e-4
    )
    assert found.gains[0].own == pytest.approx(gains.mean())
    single = run.compare()
    assert single.matrix == [cell for cell in found.matrix if cell.seed == 0]


def test_seeds_keep_the_rows_that_are_held_out(make_recipe, tmp_path, silos):
    for name in SILOS:
        (silos / name / "test.jsonl").unlink()
    found = silotune.train(make_recipe(data={"holdout": 0.3}), out=tmp_path / "run").compare(seeds=2)
    assert {cell.tokens for cell in found.matrix if cell.silo == "ash"} == {found.matrix[0].tokens}


def test_the_curve_over_rows(run, tmp_path):
    found = run.compare(rows=[2, 6, 9], silos=["ash", "birch"])
    assert [point.rows for point in found.curve] == [2, 6, 9]
    assert [[one.rows for one in point.silos] for point in found.curve] == [[2, 2], [6, 6], [9, 6]]
    assert [point.fewer for point in found.curve] == [[], ["cedar"], ["birch", "cedar"]]
    assert len({point.own for point in found.curve}) == 3
    assert len(list((run.path / "compare").glob("federated-*"))) == 3  # two points, and the run
    whole = found.curve[-1]  # every silo holds all that it has: the run itself
    assert whole.own == pytest.approx(found.mean_gain.own, rel=1e-9)
    assert whole.everybody == pytest.approx(found.mean_gain.everybody, rel=1e-9)
    assert any("cedar" in line for line in found.remarks)
    assert {cell.model for cell in found.matrix} == {"base", "alone:ash", "alone:birch", "pooled", "federated"}
    drawn = plots.curve(found)
    assert drawn is not None and "2 rows" in drawn.words


def test_fewer_rows_are_some_of_those_of_more(run):
    from silotune.compare.context import open_context

    context = open_context(run.folder)
    chosen = [set(context.corpus("ash", count).train.chosen.tolist()) for count in (2, 5, 8, 20)]
    assert [len(rows) for rows in chosen] == [2, 5, 8, 9] and chosen[0] < chosen[1] < chosen[2] < chosen[3]
    assert len(context.corpus("ash", 2).test) == len(context.corpus("ash").test)


def test_rounds_that_a_silo_sat_out_are_not_in_its_budget(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 3}, federation={"cohort": 0.5})
    run = silotune.train(recipe, out=tmp_path / "run")
    taken = {silo: sum(1 for line in run.metrics() if line["silo"] == silo and line["train"]) for silo in SILOS}
    found = run.compare()
    models = {one.model: one for one in found.budget.models}
    assert sum(taken.values()) == 6 and not any("No update" in line for line in found.remarks)
    for silo in SILOS:
        assert models[f"alone:{silo}"].rounds == max(1, taken[silo])
    assert models["pooled"].steps == models["federated"].steps == 12


def test_silos_that_sat_out_the_whole_run_are_told(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 1}, federation={"cohort": 0.1, "minimum": 1})
    run = silotune.train(recipe, out=tmp_path / "run")
    (asked,) = {line["silo"] for line in run.metrics() if line["silo"] and line["train"]}
    found = run.compare()
    idle = ", ".join(silo for silo in SILOS if silo != asked)
    told = f"No update of these silos counted in the run; alone each trains for one round: {idle}."
    assert told in found.remarks and {one.rounds for one in found.budget.models if "alone" in one.model} == {1}


def test_epochs_are_the_same_steps_along_the_curve(make_recipe, tmp_path):
    run = silotune.train(make_recipe(training={"steps": None, "epochs": 1.0}), out=tmp_path / "run")
    found = run.compare(rows=[3])
    models = {one.model: one for one in found.budget.models}
    assert models["alone:ash"].steps > models["alone:cedar"].steps
    folders = [json.loads((folder / "trained.json").read_text()) for folder in (run.path / "compare").glob("alone-*")]
    steps = {
        (told["rows"], spent["steps"]) for told in folders for spent in told["silos"].values() if told["rows"] == 3
    }
    assert steps == {(3, 6)}  # rows 9, 6 and 4 in batches of 2 are 4, 3 and 2 steps per round
    assert any("same number of steps" in line for line in found.remarks)


def test_labels_are_scored_and_gained(make_recipe, tmp_path):
    for index, (name, rows) in enumerate((("a", 9), ("b", 6))):
        write_labelled(tmp_path / "labelled" / name, rows, 7 * index)
    recipe = make_recipe(data={"silos": "labelled/*"}, lora={"targets": "all"}, training={"learning_rate": 0.1})
    found = silotune.train(recipe, out=tmp_path / "run").compare()
    for cell in found.matrix:
        labels = cell.scores.labels
        assert labels.rows == 4 == sum(map(sum, labels.confusion)) and labels.majority == 0.5
        assert labels.labels == ("north", "south", "under the stone")
        assert labels.accuracy == np.trace(np.array(labels.confusion)) / 4
    for row in found.everybody:
        each = [cell.scores.labels for cell in cells(found, row.model).values()]
        assert np.array_equal(row.scores.labels.confusion, sum(np.array(one.confusion) for one in each))
        assert row.scores.labels.invalid == pytest.approx(np.mean([one.invalid for one in each]))
    gain = found.gains[0]
    own = [cells(found, name)["a"].scores.labels.accuracy for name in ("federated", "alone:a")]
    assert gain.own_accuracy == pytest.approx(own[0] - own[1]) and found.mean_gain.own_accuracy is not None
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_labels_that_are_no_answers_are_told(make_recipe, tmp_path, silos):
    for name in SILOS:
        for split in ("train", "test"):
            file = silos / name / f"{split}.jsonl"
            rows = [json.loads(line) | {"label": "xy"[i % 2]} for i, line in enumerate(file.read_text().splitlines())]
            file.write_text("\n".join(map(json.dumps, rows)))
    found = silotune.train(make_recipe(), out=tmp_path / "run").compare()
    assert found.matrix[0].scores is None
    assert "Labels are not scored: the answers do not begin with the labels." in found.remarks


def test_answers_are_scored_where_asked(run, monkeypatch):
    monkeypatch.setattr("silotune.inference.answers.MOST_TOKENS", 6)
    found = run.compare(answers=2)
    for cell in found.matrix:
        asked = not cell.model.startswith("alone:") or cell.model == f"alone:{cell.silo}"
        assert (cell.scores is not None) == asked
        if asked:
            assert cell.scores.answers.answers == 2 and 0 <= cell.scores.answers.chrf <= 100
    assert everybody(found, "federated").scores.answers.answers == 6
    text = "".join(file.read_text() for file in (run.path / "compare").rglob("answers-*.json"))
    assert "lies" not in text and "stone" not in text  # figures only


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"silos": ["oak"]}, "--silos: the run has no silo 'oak'; it has ash, birch, cedar"),
        ({"rows": [4, 10]}, r"--rows 10: no silo holds so many training rows \(ash 9, birch 6, cedar 4\)"),
        ({"rows": [0]}, "at least 1"), ({"rows": [3, 3]}, "different numbers"), ({"seeds": 0}, "--seeds 0"),
        ({"answers": -1}, "--answers -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(run, wanted, says):
    with pytest.raises(InputError, match=says):
        run.compare(**wanted)
    assert not (run.path / "compare").exists() and not (run.path / "compare.json").exists()


def test_a_run_whose_text_is_elsewhere_is_refused(run, silos):
    silos.rename(silos.with_name("elsewhere"))
    with pytest.raises(RunError, match="needs all silos' text on this machine"):
        run.compare()
    silos.mkdir()
    for index, name in enumerate(("ash", "birch")):
        write_silo(silos / name, 5, index)
    with pytest.raises(
        RunError, match=r"made by ash, birch, cedar, and the recipe's silos on this machine are ash, birch"
    ):
        run.compare()


def test_a_run_whose_text_has_changed_is_refused(run, silos):
    with (silos / "ash" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "Where ?", "response": "a stone"}) + "\n")
    with pytest.raises(RunError, match="'ash' holds other text than when the run was made: 10 training rows"):
        run.compare()


def test_an_unfinished_run_is_refused(run):
    shutil.rmtree(run.path / "adapter")
    with pytest.raises(RunError, match="not come to its end"):
        silotune.open_run(run.path)


def test_a_training_that_diverges_is_told_with_its_model(run, monkeypatch):
    real = training.train_round

    def fail(tuner, forward_plan, task, *rest):
        if task.silo == "pooled":
            raise DivergedError("the loss is not finite at step 1")
        return real(tuner, forward_plan, task, *rest)

    monkeypatch.setattr(training, "train_round", fail)
    with pytest.raises(FederationError, match="pooled: the loss is not finite"):
        run.compare()


def test_a_damaged_comparison_is_told(run):
    run.compare()
    (run.path / "compare.json").write_text("{}")
    with pytest.raises(RunError, match="Make it again: silotune compare"):
        comparison.read(run.folder)
