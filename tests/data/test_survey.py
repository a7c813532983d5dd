"""What `silotune check` counts, and how it shows names."""

import io

import pytest
from rich.console import Console
from tests.data.helpers import rows_in, write_records

from silotune.data.silos.survey import survey
from silotune.data.tokenize.tokens import encode
from silotune.errors import DataError
from silotune.model.base import load_tokenizer
from silotune.recipe import recipe_of
from silotune.report import survey as shown


@pytest.fixture
def tokenizer(tiny_base):
    return load_tokenizer(str(tiny_base))


@pytest.fixture
def look(tmp_path, tokenizer):
    def looked(single=None, show=0, **data):
        data.setdefault("silos", str(tmp_path / "silos"))
        recipe = recipe_of({"data": data}, [], tmp_path)
        return survey(recipe, tokenizer, single, show=show)

    return looked


def write_silo(folder, train, test=None):
    folder.mkdir(parents=True)
    write_records(folder / "train.jsonl", train)
    if test:
        write_records(folder / "test.jsonl", test)


def pair(prompt, answer="stone", **more):
    return {"prompt": prompt, "completion": answer, **more}


def test_everything_is_counted(tmp_path, look, tokenizer):
    a = tmp_path / "silos" / "a"
    write_silo(a, [pair("red", label="x"), pair("red", label="x"), pair("blue", label="y"), pair("green " * 90, label="x"),
                   {"prompt": "red", "completion": "stone", "system": "seven " * 90}], [pair("red"), pair("north"), pair("lamp")])  # fmt: skip
    (a / "notes.csv").write_text("x")
    write_silo(tmp_path / "silos" / "b", [pair(f"river {i}", note="n") for i in range(10)])
    first, second = look(max_length=64).silos
    train = first.train
    assert (train.rows, train.examples, train.cut, train.lost, train.duplicates) == (5, 4, 1, 1, 1)
    assert train.labels == {"x": 3, "y": 1} and train.shape == "prompt/completion" and train.fields_not_read == {}
    examples = [e for found in encode(tokenizer, rows_in(a / "train.jsonl"), 64) for e in found]
    lengths = sorted(len(example.ids) for example in examples)
    assert train.tokens == sum(lengths) and train.loss_tokens == sum(example.loss_tokens for example in examples)
    assert train.lengths == {
        "min": lengths[0],
        "p50": lengths[2],
        "p90": lengths[3],
        "p99": lengths[3],
        "max": lengths[3],
    }
    assert first.test.rows == 3 and len(first.leaks.exact) == 1 and first.leaks.own == 1 and not first.held_out
    assert first.files_not_read == ("notes.csv",) and train.files == ("train.jsonl",)
    assert second.held_out and (second.train.rows, second.test.rows) == (9, 1)
    assert second.train.fields_not_read == {"train.jsonl": ("note",)}
    dropped, _ = look(max_length=64, drop_leaks=True).silos
    assert dropped.test.rows == 2 and len(dropped.leaks.exact) == 1


def test_what_is_cut_is_said_apart(tmp_path, look):
    path = write_records(
        tmp_path / "rows.jsonl",
        [pair("green " * 90)] * 3 + [pair("red", "stone " * 90)] * 2 + [pair("red", system="seven " * 90)],
    )
    found = look(path, silos=str(path), max_length=64)
    train = found.silos[0].train
    assert (train.cut, train.answer_cut, train.lost) == (3, 2, 1)
    told = "\n".join(shown.remarks(found))
    for words in ("Cut: more than", "Answer cut: the last exchange alone", "Lost: no token"):
        assert words in told
    stream = io.StringIO()
    shown.show(found, Console(file=stream, width=200))
    (line,) = (line for line in stream.getvalue().splitlines() if "rows.jsonl" in line and "│" in line)
    assert [cell.strip() for cell in line.split("│")][9:12] == ["3", "2", "1"]


def test_a_single_file_is_looked_at_as_it_is(tmp_path, look):
    path = write_records(tmp_path / "rows.csv", [{"question": f"q{i}", "answer": "a"} for i in range(7)])
    (silo,) = look(path, silos=str(path)).silos
    assert silo.train.rows == 7 and silo.test is None and silo.name == "rows.csv"


def test_names_cannot_steer_a_terminal_and_rows_are_not_shown(tmp_path, look):
    name = "bell\a\x1b[31m[bold]\u202e"
    write_silo(tmp_path / "silos" / name, [pair(f"zebra {i}", "giraffe", label="l\x1b[2J") for i in range(6)])
    write_silo(tmp_path / "silos" / "b", [pair(f"zebra {i}", "giraffe") for i in range(6)])
    found = look()
    stream = io.StringIO()
    shown.show(found, Console(file=stream, width=200))
    text = stream.getvalue()
    assert "bell\\x07\\x1b[31m[bold]\\u202e" in text and "l\\x1b[2J 5" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "zebra" not in text and "giraffe" not in text
    for ending in (".svg", ".png"):
        shown.plot(found.silos, tmp_path / f"plot{ending}")
        assert (tmp_path / f"plot{ending}").stat().st_size > 1000


def test_json_has_the_promised_form(tmp_path, look):
    write_silo(tmp_path / "silos" / "a", [pair(f"q{i}") for i in range(6)], [pair("q1")])
    write_silo(tmp_path / "silos" / "b", [pair(f"r{i}") for i in range(6)])
    told = shown.as_json(look())
    assert [silo["name"] for silo in told["silos"]] == ["a", "b"]
    for silo in told["silos"]:
        assert {"rows", "tokens", "loss_tokens", "lengths", "cut", "answer_cut", "lost", "duplicates"} <= silo[
            "train"
        ].keys() & silo["test"].keys()
    assert told["silos"][0]["test"]["leaks"] == {"exact": 1, "near": 0, "own": 1}


def test_it_refuses_what_training_would(tmp_path, tokenizer):
    def looked(trains=True, **data):
        recipe = recipe_of({"data": {"silos": str(tmp_path / "silos"), **data}}, [], tmp_path)
        return survey(recipe, tokenizer, trains=trains).silos

    write_silo(tmp_path / "silos" / "a", [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(4)])
    with pytest.raises(DataError, match=r"a/train\.jsonl: the rows are preference pairs"):
        looked()
    (silo,) = looked(trains=False)
    assert silo.train.rows == 3 and silo.train.shape == "prompt/chosen/rejected"
    write_silo(tmp_path / "b" / "b", [pair("red")] * 4, [pair("red")])
    with pytest.raises(DataError, match="all 1 test rows also stand in training text"):
        looked(silos=str(tmp_path / "b"), drop_leaks=True)
    write_silo(tmp_path / "c" / "c", [{**pair("red"), "system": "seven " * 90}] * 4)
    with pytest.raises(DataError, match="of none of 3 rows does a token of the response fit"):
        looked(silos=str(tmp_path / "c"), max_length=64)


def test_rows_are_shown_as_tokens_only_when_they_are_asked_for(tmp_path, look):
    write_silo(tmp_path / "silos" / "a", [pair(f"zebra \x1b[2J {i}", "giraffe stone") for i in range(6)])
    write_silo(tmp_path / "silos" / "b", [pair(f"zebra {i}", "giraffe") for i in range(6)])
    found = look(show=3)
    assert [row.silo for row in found.rows] == ["a", "b", "a"] and "zebra" not in str(shown.as_json(found))
    stream = io.StringIO()
    shown.show(found, Console(file=stream, width=200))
    lines = stream.getvalue().splitlines()
    assert "a, train.jsonl:" in "\n".join(lines) and all(c.isprintable() for line in lines for c in line)
    tokens = next(line for line in lines if "⟦" in line)
    learned = tokens.partition("⟦")[2].partition("⟧")[0]
    assert learned.endswith("<|im_end|>") and "f f e" in learned and "z" not in learned
    assert "with loss: " in tokens and tokens.count("⟦") == tokens.count("⟧") == 1


def test_what_is_odd_about_a_template_is_told(tmp_path, look, tokenizer):
    write_silo(tmp_path / "silos" / "a", [pair("red"), pair("blue"), pair("green")])
    assert look().oddities == []
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    said = "\n".join(shown.remarks(look()))
    assert "template  The chat template writes no end of turn. Answers learn to end with <|im_end|>" in said
