"""Reading rows: every shape, and every refusal with its place and without its text."""

import json

import pytest

from silotune.data.rows import Turn, read_rows
from silotune.errors import DataError

SECRET = "xylophone-secret"


def write(tmp_path, *lines, name="train.jsonl"):
    path = tmp_path / name
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


@pytest.mark.parametrize(
    ("record", "question"),
    [
        ({"instruction": "Q", "response": "A"}, "Q"),
        ({"instruction": "Q", "output": "A", "input": ""}, "Q"),
        ({"instruction": "Q", "output": "A", "input": "I"}, "Q\n\nI"),
        ({"prompt": "Q", "completion": "A", "label": 3}, "Q"),
        ({"question": "Q", "answer": "A"}, "Q"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "Q"),
    ],
)
def test_shapes(tmp_path, record, question):
    rows = read_rows(write(tmp_path, json.dumps(record))).rows
    assert rows[0].turns == (Turn("user", question), Turn("assistant", "A"))
    assert rows[0].line == 1


def test_text_stays_as_it_is(tmp_path):
    text = "  a\u2028b\u0085c \U0001f600 \u202eright\u200b\r\n\ttab  "
    path = write(
        tmp_path, b"\xef\xbb\xbf" + json.dumps({"prompt": text, "completion": text}).encode() + b"\r", b"", b""
    )
    assert [turn.content for turn in read_rows(path).rows[0].turns] == [text, text]


GOOD = json.dumps({"prompt": "Q", "completion": "A"})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{" + f'"prompt": "{SECRET}"', "not valid JSON"),
        (GOOD + GOOD, "not valid JSON"),
        ("[1, 2]", "must be a JSON object"),
        ("42", "must be a JSON object"),
        (json.dumps({SECRET[:3]: SECRET}), "no shape of row has these fields ('xyl')"),
        (json.dumps({"prompt": SECRET, "completion": None}), "'completion' must be text, not null"),
        (json.dumps({"prompt": SECRET, "completion": 42}), "'completion' must be text, not a number"),
        (json.dumps({"prompt": SECRET, "completion": [SECRET]}), "'completion' must be text, not a list"),
        (json.dumps({"prompt": SECRET, "completion": " \n"}), "'completion' is blank"),
        (json.dumps({"prompt": SECRET, "completion": "a\x00b"}), "has a NUL"),
        ('{"prompt": "Q", "completion": "\\ud800"}', "surrogate"),
        (f'{{"prompt": "Q", "prompt": "{SECRET}", "completion": "A"}}', "stands twice"),
        (json.dumps({"question": "Q", "answer": "A"}), "the row is question/answer, the rows before are prompt/completion"),
        (b'{"prompt": "\xff", "completion": "A"}', "not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps({"messages": []}), "'messages' must be a list"),
        (json.dumps({"messages": [{"role": "user", "content": SECRET}]}), "last message must be the assistant's"),
        (json.dumps({"messages": [{"role": "assistant", "content": SECRET}]}), "must be system or user here"),
        (json.dumps({"messages": [{"role": "user", "content": SECRET}, {"role": "user", "content": "x"}]}), "messages[1]"),
        (json.dumps({"messages": [{"role": "user"}]}), "messages[0]"),
    ],
)  # fmt: skip
def test_refusals_name_file_line_and_field_but_no_text(tmp_path, line, says):
    path = write(tmp_path, GOOD, line)
    with pytest.raises(DataError) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}:2:")
    assert says in str(error.value)
    assert SECRET not in str(error.value)


def test_whole_files_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "no.jsonl")
    with pytest.raises(DataError, match="not a file"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match="no rows"):
        read_rows(write(tmp_path, b"", b"  "))
    with pytest.raises(DataError, match="UTF-16"):
        read_rows(write(tmp_path, GOOD.encode("utf-16")))
