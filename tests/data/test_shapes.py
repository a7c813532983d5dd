"""Shapes of rows: recognised from their fields, or said by the recipe."""

import json
import re

import pytest
from tests.data.helpers import rows_in, write_records

from silotune.data.read.reading import Reading, Seen, read_rows
from silotune.data.read.rows import Turn
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
    assert seen.shape == shape and seen.unused == {str(path): {"id"}}


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
        return seen.unused.get(str(tmp_path / "a.jsonl"), set())

    assert unread(PAIR, {**PAIR, "input": "x", "notes": "y", "source": None, "tags": []}) == {"notes"}
    turns = [
        {"role": "user", "content": "q", "weight": 1, "name": "Ann"},
        {"role": "assistant", "content": "a", "tool_calls": [], "refusal": None, "audio": {"id": "x"}},
    ]
    assert unread({"messages": turns}) == {
        "messages[].weight of turns that are not the assistant's",
        "messages[].name",
        "messages[].audio",
    }


def test_a_mapped_field_may_be_missing_in_some_rows(tmp_path):
    rows = rows_with(tmp_path, {**PAIR, "klasse": "x"}, PAIR, label="klasse")
    assert [row.label for row in rows] == ["x", None]


# -------------------------------------------------------------------------------- what comes on top, and turns

SYSTEM = Turn("system", "s")
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


def row_of(tmp_path, record, **fields):
    (row,) = rows_with(tmp_path, record, **fields)
    return row


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"system": "s", "messages": MESSAGES}, (SYSTEM, USER, ANSWER)),
        ({"system": "s", "conversations": SHAREGPT}, (SYSTEM, USER, ANSWER)),
        ({"system": "  ", "messages": MESSAGES}, (USER, ANSWER)),
        ({"system": "s", "messages": [{"role": "system", "content": "s"}, *MESSAGES]}, (SYSTEM, USER, ANSWER)),
        ({"messages": [{"role": "developer", "content": "s"}, *MESSAGES]}, (SYSTEM, USER, ANSWER)),
        ({"question": "q", "context": "c", "answer": "a"}, (Turn("user", "q\n\nc"), ANSWER)),
        ({"prompt": "q", "input": "i", "context": "c", "completion": "a"}, (Turn("user", "q\n\ni\n\nc"), ANSWER)),
        ({"instruction": "q", "context": "", "response": "a"}, (USER, ANSWER)),
        ({"instruction": "q", "output": "a", "history": [["1", "2"], ["3", "4"]], "system": "s"},
         (SYSTEM, Turn("user", "1"), Turn("assistant", "2"), Turn("user", "3"), Turn("assistant", "4"), USER, ANSWER)),
        ({"prompt": "q", "completion": "a", "history": []}, (USER, ANSWER)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, MESSAGES[1]]}, (USER, ANSWER)),
    ],
)  # fmt: skip
def test_what_comes_on_top_is_read(tmp_path, record, turns):
    assert row_of(tmp_path, record).turns == turns


def test_a_mapping_leaves_nothing_out_that_has_a_meaning_of_its_own(tmp_path):
    record = {"instruction": "q", "input": "i", "output": "a", "text": "t", "system": "s"}
    seen = Seen()
    path = write_records(tmp_path / "a.jsonl", [record])
    reading = Reading(fields=(("prompt", "instruction"), ("response", "output")))
    ((_, row),) = read_rows([str(path)], reading, seen)
    assert row.turns == (SYSTEM, Turn("user", "q\n\ni"), ANSWER) and seen.unused == {str(path): {"text"}}


def test_what_is_suggested_for_two_shapes_says_what_each_leaves_out(tmp_path):
    record = {"instruction": "q", "input": "i", "output": "a", "text": "t", "zebra": "z"}
    with pytest.raises(DataError) as error:
        rows_with(tmp_path, record)
    said = str(error.value)
    assert 'fields = { prompt = "instruction", response = "output", input = "input" }, which leaves out text' in said
    assert 'fields = { text = "text" }, which leaves out input, instruction, output, 1 of other names' in said
    assert "zebra" not in said
    row = row_of(tmp_path, record, prompt="instruction", response="output", input="input")
    assert row.turns == (Turn("user", "q\n\ni"), ANSWER)


@pytest.mark.parametrize(
    ("switch", "learned"),
    [({"weight": 0}, False), ({"weight": 1}, True), ({"weight": 0.0}, False), ({"train": False}, False), ({"train": True}, True),
     ({"mask": True}, False), ({"mask": 0}, True), ({"loss": False}, False), ({"loss": 0.3}, True), ({"loss": 0}, False), ({"weight": None}, True)],
)  # fmt: skip
def test_a_turn_says_whether_it_carries_loss(tmp_path, switch, learned):
    later = [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]
    row = row_of(tmp_path, {"messages": [MESSAGES[0], {**MESSAGES[1], **switch}, *later]})
    assert [turn.learned for turn in row.turns if turn.role == "assistant"] == [learned, True]


def test_tools_calls_and_thoughts_are_read_in_every_form(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oxbay"}'}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "a", "thinking": "so"},
    ]
    row = row_of(tmp_path, {"messages": turns, "tools": TOOLS})
    assert json.loads(row.tools) == TOOLS
    assert json.loads(row.turns[1].tool_calls) == [call] and row.turns[1].content == ""
    assert (row.turns[1].reasoning, row.turns[3].reasoning) == ("hm", "so")
    assert (row.turns[2].role, row.turns[2].name, row.turns[2].tool_call_id) == ("tool", "weather", "c1")
    assert all(part in row.parts for part in ("hm", "so", row.tools, row.turns[1].tool_calls))
    shared = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oxbay"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "a"},
    ]
    other = row_of(tmp_path, {"conversations": shared, "tools": json.dumps(TOOLS)})
    assert [turn.role for turn in other.turns] == ["user", "assistant", "tool", "assistant"]
    assert json.loads(other.turns[1].tool_calls)[0]["function"] == {"name": "weather", "arguments": {"city": "Oxbay"}}
    assert json.loads(other.tools) == TOOLS


CALL = {"name": "weather", "parameters": {"city": "Oxbay"}}


@pytest.mark.parametrize(
    "said",
    [{"tool_calls": [CALL]}, {"tool_calls": [{"type": "function", "function": CALL}]}, {"tool_calls": json.dumps([CALL])},
     {"function_call": {"name": "weather", "arguments": {"city": "Oxbay"}}}],
)  # fmt: skip
def test_no_argument_of_a_call_is_lost(tmp_path, said):
    turns = [MESSAGES[0], {"role": "assistant", "content": None, **said}]
    row = row_of(tmp_path, {"messages": turns, "tools": "[]"})
    (call,) = json.loads(row.turns[1].tool_calls)
    assert call["function"] == {"name": "weather", "arguments": {"city": "Oxbay"}} and row.tools is None


def test_a_call_may_come_with_thoughts_in_either_form(tmp_path):
    call = {"from": "function_call", "value": json.dumps(CALL), "reasoning": "hm"}
    row = row_of(tmp_path, {"conversations": [{"from": "human", "value": "q"}, call]})
    assert row.turns[1].reasoning == "hm" and row.turns[1].content == ""


def messages(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (messages(("assistant", "hello"), ("user", "q"), ("assistant", "a")), r"messages\[0\]: the role must be system or user here: the "
         r"assistant speaks first\. Put the user's turn before it, or move what it says into the system turn\."),
        (messages(("system", "s"), ("assistant", "hello")), "the assistant speaks first"),
        (messages(("user", "q"), ("user", "r"), ("assistant", "a")), r"must be assistant here\. Join the two user turns into one\."),
        (messages(("user", "q"), ("assistant", "a"), ("user", "r")), r"the last turn must be the assistant's\. Remove what comes after\."),
        (messages(("user", "q"), ("bot", "a")), r"'role' must be one of system, developer, user, assistant, tool, function; here assistant\."),
        (messages(("user", "q"), ("assistant", " ")), r"messages\[1\]: field 'content' is blank\. Fill it, or leave the row out\."),
        (messages(("user", "q"), ("tool", "t"), ("assistant", "a")), r"messages\[1\]: the role must be assistant here\."),
        ({"messages": [{"Role": "user", "content": "q"}, MESSAGES[1]]}, "Write 'role' in small letters and without blanks"),
        ({"messages": [{"role": "user", "Content ": "q"}, MESSAGES[1]]}, "the key .Content .* is not read as .content."),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0}]}, "no answer carries loss, so there is nothing to learn"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0.5}]}, "'weight' must be 0 or 1, true or false"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "thinking": "x", "reasoning": "y"}]}, "thinking and reasoning both say"),
        ({"messages": [{**MESSAGES[0], "tool_calls": [1]}, MESSAGES[1]]}, "tool_calls belongs to the assistant's turns"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "tool_calls": [{"name": ""}]}]}, r"tool_calls\[0\]: must be an object with a function's"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, MESSAGES[1]]}, "has a part that is no text"),
        ({"messages": MESSAGES, "tools": "no json"}, "field 'tools': not valid JSON"),
        ({"messages": MESSAGES, "tools": '[{"name": "f", "name": "g"}]'}, "a field stands twice"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "Weight": 0}]}, r"messages\[1\]: the key 'Weight' is not read as 'weight'"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "content": [{"type": "text", "text": "a", "train": False}]}]}, "has a part with 'train'"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "tool_calls": [{"type": "custom", "name": "f"}]}]}, r"tool_calls\[0\]: has more than"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "tool_calls": [{"function": {"name": "f", "args": {"a": 1}}}]}]}, "has more than a function's"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "tool_calls": [1]}]}, "must be a list of calls, each with a name and arguments"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "tool_calls": [CALL], "function_call": CALL}]}, "tool_calls and function_call both call tools"),
        ({"conversations": [{"role": "user", "content": "q"}]}, r'Its turns are messages: set data\.fields = \{ messages = "conversations" \}'),
        ({"messages": MESSAGES, "tools": [1]}, "field 'tools' must be a list of tools, each an object"),
        ({"messages": [{"role": "system", "content": "t"}, *MESSAGES], "system": "s"}, "field 'system' and the first turn are two system turns"),
        ({**PAIR, "history": [["q"]]}, r"field 'history' must be a list of \[question, answer\], oldest first"),
        ({**PAIR, "history": [["q", 3]]}, r"field 'history\[0\]' must be text, not a number"),
        ({**PAIR, "context": {"title": "x"}}, "field 'context' must be text, not an object. Write it as text"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "no"}]}, r"conversations\[1\]: not valid JSON"),
    ],
)  # fmt: skip
def test_turns_that_cannot_be_meant_are_refused_with_a_remedy(tmp_path, record, says):
    with pytest.raises(DataError, match=r"a\.jsonl:1: ") as error:
        rows_with(tmp_path, record)
    assert re.search(says, str(error.value)), str(error.value)
