"""Prompts from files: lines, rows, conversations; what cannot be answered is refused with its line."""

import json

import pytest

from silotune.data.read.prompts import read_prompts
from silotune.data.read.rows import Conversation, Turn
from silotune.errors import DataError


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def waiting(*turns):
    return Conversation(turns)


def test_lines_of_a_text_file(tmp_path):
    path = write(tmp_path / "a.txt", "Where is it?", "", "  ", "Who?\r", "")
    assert read_prompts(path) == [waiting(Turn("user", "Where is it?")), waiting(Turn("user", "Who?"))]
    assert read_prompts(path, "Be brief.")[1] == waiting(Turn("system", "Be brief."), Turn("user", "Who?"))


def test_rows_with_a_prompt_or_a_conversation(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "a", "response": "never read"},
        {"instruction": "b", "input": "c", "output": 5},
        {"question": "d", "system": "own"},
        {"messages": [{"role": "user", "content": "e"}, {"role": "assistant", "content": "f"}, {"role": "user", "content": "g"}]},
    )  # fmt: skip
    assert read_prompts(path, "S") == [
        waiting(Turn("system", "S"), Turn("user", "a")),
        waiting(Turn("system", "S"), Turn("user", "b\n\nc")),
        waiting(Turn("system", "own"), Turn("user", "d")),
        waiting(Turn("system", "S"), Turn("user", "e"), Turn("assistant", "f"), Turn("user", "g")),
    ]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (['{"prompt": ""}'], r"a\.jsonl:1: field 'prompt' is blank"),
        (['{"prompt": "a"}', '{"prompt": 3}'], r"a\.jsonl:2: field 'prompt' must be text"),
        (['{"text": "a"}'], r":1: no field says what is asked\. Use messages or prompt"),
        (['{"prompt": "a", "question": "b"}'], r":1: prompt and question both say what is asked"),
        (['{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'], "the last turn must be the user's"),
        (['{"messages": [{"role": "tool", "content": "a"}]}'], "the role must be system or user here"),
        (["{"], "not valid JSON"),
        ([""], "no prompt in it"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_with_its_line(tmp_path, rows, says):
    with pytest.raises(DataError, match=says):
        read_prompts(write(tmp_path / "a.jsonl", *rows))


def test_a_file_of_another_kind_or_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="no known format"):
        read_prompts(write(tmp_path / "a.doc", "x"))
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "none.txt")
