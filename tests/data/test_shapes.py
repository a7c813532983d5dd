"""Shapes of rows: recognised from their fields, or said by the recipe."""

import json

import pytest
from tests.data.helpers import rows_in, write_records

from silotune.data.reading import Reading, Seen, read_rows
from silotune.data.rows import Turn
from silotune.errors import DataError

USER, ANSWER = Turn("user", "q"), Turn("assistant", "a")


@pytest.mark.parametrize(
    ("record", "turns", "shape"),
    [
        ({"instruction": "q", "response": "a"}, (USER, ANSWER), "instruction/response"),
        ({"instruction": "q", "output": "a"}, (USER, ANSWER), "instruction/response"),
        ({"instruction": "q", "input": "x", "output": "a"}, (Turn("user", "q\n\nx"), ANSWER), "instruction/response"),
        ({"instruction": "q", "input": "", "output": "a"}, (USER, ANSWER), "instruction/response"),
        ({"instruction": "q", "input": None, "output": "a"}, (USER, ANSWER), "instruction/response"),
        ({"prompt": "q", "completion": "a"}, (USER, ANSWER), "prompt/completion"),
        ({"prompt": "q", "response": "a"}, (USER, ANSWER), "prompt/completion"),
        ({"question": "q", "answer": "a"}, (USER, ANSWER), "question/answer"),
        ({"system": "s", "prompt": "q", "completion": "a"}, (Turn("system", "s"), USER, ANSWER), "prompt/completion"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, (USER, ANSWER), "messages"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, (USER, ANSWER), "conversations"),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "user", "value": "q"},
                            {"from": "assistant", "value": "a"}]}, (Turn("system", "s"), USER, ANSWER), "conversations"),
        ({"text": "t"}, (), "text"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, (USER, ANSWER), "prompt/chosen/rejected"),
    ],
)  # fmt: skip
def test_every_shape_is_recognised(tmp_path, record, turns, shape):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**record, "label": "yes", "id": 7}))
    seen = Seen()
    ((_, row),) = read_rows([str(path)], Reading(), seen)
    assert row.turns == turns and row.label == "yes" and row.text == record.get("text")
    assert row.rejected == record.get("rejected")
    assert seen.shape == shape and seen.unused == {"id"}


@pytest.mark.parametrize(
    ("fields", "record", "turns"),
    [
        ({"prompt": "q1", "response": "a1"}, {"q1": "q", "a1": "a"}, (USER, ANSWER)),
        ({"messages": "talk"}, {"talk": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, (USER, ANSWER)),
        ({"prompt": "prompt", "response": "chosen"}, {"prompt": "q", "chosen": "a", "rejected": "b"}, (USER, ANSWER)),
        ({"prompt": "p", "response": "r", "system": "s", "input": "i"}, {"p": "q", "r": "a", "s": "be", "i": "x"},
         (Turn("system", "be"), Turn("user", "q\n\nx"), ANSWER)),
        ({"label": "class"}, {"prompt": "q", "completion": "a", "class": "yes"}, (USER, ANSWER)),
    ],
)  # fmt: skip
def test_a_recipe_says_what_fields_are(tmp_path, fields, record, turns):
    path = write_records(tmp_path / "a.jsonl", [record])
    (row,) = rows_in(path, fields=tuple(fields.items()))
    assert row.turns == turns and row.label == record.get("class")


def test_a_field_that_the_recipe_names_must_be_there(tmp_path):
    path = write_records(tmp_path / "a.jsonl", [{"q": "q"}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'a' is missing; data\.fields says that it is the response"):
        rows_in(path, fields=(("prompt", "q"), ("response", "a")))


def test_labels_are_text_or_whole_numbers(tmp_path):
    path = write_records(tmp_path / "a.jsonl", [{"text": "t", "label": label} for label in ("yes", 3, True, None)])
    assert [row.label for row in rows_in(path)] == ["yes", "3", "True", None]


def test_digests_look_past_white_space_only(tmp_path):
    rows = rows_in(write_records(tmp_path / "a.jsonl", [
        {"prompt": "q  r", "completion": "a"}, {"prompt": " q r\n", "completion": "a", "label": "x"},
        {"prompt": "q r", "completion": "A"}, {"prompt": "q", "completion": "r a"},
    ]))  # fmt: skip
    assert rows[0].digest == rows[1].digest
    assert len({row.digest for row in rows}) == 3


def rows_with(tmp_path, *records, name="a.jsonl", **fields):
    return rows_in(write_records(tmp_path / name, list(records)), fields=tuple(fields.items()))


PAIR = {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize(
    ("records", "fields", "says"),
    [
        ([PAIR, {**PAIR, "messages": []}], {}, r":2: the fields fit two shapes \(messages and prompt \+ completion\)"),
        ([PAIR, {**PAIR, "text": "t"}], {}, ":2: the fields fit two shapes"),
        ([PAIR], {"system": "sytsem"}, "no row has a field 'sytsem', which data.fields calls the system"),
        ([PAIR, PAIR], {"label": "klasse"}, "no row has a field 'klasse', which data.fields calls the label"),
        ([{"text": "t", "in": "x"}], {"input": "in"}, ":1: data.fields names input; rows of text have no such"),
        ([{**PAIR, "label": "x" * 300}], {}, ":1: field 'label' has 300 characters; a label has at most 256"),
    ],
)
def test_what_does_not_fit_is_refused_on_any_row(tmp_path, records, fields, says):
    with pytest.raises(DataError, match=says):
        rows_with(tmp_path, *records, **fields)


def test_fields_that_are_not_read_are_named_from_every_row_and_turn(tmp_path):
    def unread(*records):
        seen = Seen()
        list(read_rows([str(write_records(tmp_path / "a.jsonl", list(records)))], Reading(), seen))
        return seen.unused

    assert unread(PAIR, {**PAIR, "input": "x", "notes": "y"}) == {"input", "notes"}
    turns = [{"role": "user", "content": "q", "weight": 0}, {"role": "assistant", "content": "a", "tool_calls": []}]
    assert unread({"messages": turns}) == {"messages[].weight", "messages[].tool_calls"}


def test_a_mapped_field_may_be_missing_in_some_rows(tmp_path):
    rows = rows_with(tmp_path, {**PAIR, "klasse": "x"}, PAIR, label="klasse")
    assert [row.label for row in rows] == ["x", None]
