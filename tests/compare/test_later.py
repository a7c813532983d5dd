"""`evaluate` on text that came later."""

import json

import pytest
from tests.conftest import write_silo

import silotune
from silotune.compare.comparison import Cell
from silotune.errors import DataError, InputError


@pytest.fixture
def run(finished_run):
    return finished_run()


def test_a_file_of_test_rows_gives_the_runs_own_figures(run, silos):
    found = run.evaluate(silos / "ash" / "test.jsonl", base=True)
    assert [(cell.model, cell.silo) for cell in found.matrix] == [("base", "test.jsonl"), ("federated", "test.jsonl")]
    for cell, round_ in zip(found.matrix, (0, 2), strict=True):
        (line,) = [line for line in run.metrics() if line["silo"] == "ash" and line["round"] == round_]
        assert cell.loss == pytest.approx(line["evaluation"]["loss"], rel=1e-12)
        assert (cell.rows, cell.tokens) == (line["evaluation"]["rows"], line["evaluation"]["tokens"])
    assert found.seen_in_training == 0 and found.remarks == [] and found.lost == found.cut == 0


def test_all_rows_of_a_folder_of_silos_are_scored(run, silos):
    found = run.evaluate(silos)
    assert [(cell.model, cell.silo, cell.rows) for cell in found.matrix] == [
        ("federated", "ash", 12), ("federated", "birch", 9), ("federated", "cedar", 7),
    ]  # fmt: skip
    (together,) = found.everybody
    assert together.rows == 28 and together.tokens == sum(cell.tokens for cell in found.matrix)
    mean = sum(cell.loss * cell.tokens for cell in found.matrix) / together.tokens
    assert together.loss == pytest.approx(mean)
    assert found.seen_in_training == 19 and found.remarks[0].startswith("19 rows also appear in")


def test_text_of_a_run_that_is_elsewhere(run, silos, tmp_path):
    write_silo(tmp_path / "later" / "oak", 5, 300)
    silos.rename(tmp_path / "elsewhere")
    found = run.evaluate(tmp_path / "later" / "oak")
    assert found.seen_in_training is None and "is not known" in found.remarks[0] and found.matrix[0].rows == 8


def test_labels_and_answers_are_scored(run, tmp_path, monkeypatch):
    monkeypatch.setattr("silotune.inference.answers.MOST_TOKENS", 5)
    rows = [
        {"instruction": f"Where is the key of room {i} ?", "response": label, "label": label}
        for i, label in enumerate(["north", "south", "north"])
    ]
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (cell,) = run.evaluate(file, answers=2).matrix
    assert isinstance(cell, Cell) and cell.scores.labels.rows == 3 and cell.scores.labels.labels == ("north", "south")
    assert cell.scores.labels.majority == pytest.approx(2 / 3) and cell.scores.answers.answers == 2


def test_questions_are_drawn_from_all_files_of_a_silo(run, silos, monkeypatch):
    monkeypatch.setattr("silotune.inference.answers.MOST_TOKENS", 3)
    found = run.evaluate(silos, answers=5)
    assert [cell.scores.answers.answers for cell in found.matrix] == [5, 5, 5]


def test_pairs_are_scored_by_their_chosen_answers_and_told(run, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "Where ?", "chosen": "a stone", "rejected": "the river"}\n')
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"prompt": "Where ?", "response": "a stone"}\n')
    found = run.evaluate(file)
    assert found.matrix[0].loss == run.evaluate(plain).matrix[0].loss
    assert any("preference pairs" in line for line in found.remarks)


def test_rows_are_read_as_the_runs_recipe_says(make_recipe, tmp_path):
    for index, name in enumerate(("a", "b")):
        folder = tmp_path / "odd" / name
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            (folder / f"{split}.csv").write_text("q,a\n" + "".join(f"Where {index} {i} ?,a stone\n" for i in range(4)))
    recipe = make_recipe(data={"silos": "odd/*", "fields": {"prompt": "q", "response": "a"}, "max_length": 48})
    run = silotune.train(recipe, out=tmp_path / "run")
    (tmp_path / "new.csv").write_text(f"q,a\nWhere ?,under\nWhere ?,{'under ' * 60}\n")
    found = run.evaluate(tmp_path / "new.csv")
    assert found.matrix[0].rows == 2 and found.cut == 1 and "tokens: 1 rows" in found.remarks[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [("nothing.jsonl", "no such file"), ("odd.doc", "neither a recipe"), ("empty.jsonl", "no rows")],
)
def test_what_is_no_text_is_refused(run, tmp_path, name, says):
    (tmp_path / "odd.doc").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=says):
        run.evaluate(tmp_path / name)


def test_rows_without_room_for_an_answer_are_refused(make_recipe, tmp_path):
    run = silotune.train(make_recipe(data={"max_length": 40}), out=tmp_path / "run")
    row = {"messages": [{"role": "system", "content": "red " * 60}, {"role": "user", "content": "Where ?"},
                        {"role": "assistant", "content": "under a stone"}]}  # fmt: skip
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="of none of 1 rows does a token of the response fit"):
        run.evaluate(tmp_path / "long.jsonl")
