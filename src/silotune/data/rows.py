"""Rows of text from a file, read strictly: what cannot be used is refused with file, line and field.

A row is a conversation. Its shape is recognised from its fields:

    messages                                  a list of {"role", "content"}: system, user, assistant
    instruction [input] output | response     one question, one answer
    prompt, completion                        the same
    question, answer                          the same

All rows of a file have one shape. Further fields (labels, ids) are left alone. Messages name lines and fields,
never their text.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from silotune.errors import DataError

Role = Literal["system", "user", "assistant"]

SHAPES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "instruction/response": (("instruction",), ("response", "output")),
    "prompt/completion": (("prompt",), ("completion",)),
    "question/answer": (("question",), ("answer",)),
}


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Row:
    """A conversation that ends with the assistant, and the line that it stands on (from 1)."""

    turns: tuple[Turn, ...]
    line: int

    @property
    def text_bytes(self) -> int:
        """Bytes of its text in UTF-8."""
        return sum(len(turn.content.encode("utf-8")) for turn in self.turns)


@dataclass(frozen=True)
class Rows:
    """The rows of a file and their common shape."""

    rows: tuple[Row, ...]
    shape: str


def read_rows(path: Path) -> Rows:
    """Read a JSONL file.

    Raises:
        DataError: naming file, line and field, if anything in it cannot be used as it is.
    """
    rows: list[Row] = []
    shape = ""
    for number, text in _lines(path):
        where = f"{path}:{number}"
        record = _record(text, where)
        found, turns = _conversation(record, where)
        if shape and found != shape:
            raise DataError(f"{where}: the row is {found}, the rows before are {shape}. Use one shape a file.")
        shape = found
        rows.append(Row(turns, number))
    if not rows:
        raise DataError(f"{path}: the file holds no rows.")
    return Rows(tuple(rows), shape)


def _lines(path: Path) -> list[tuple[int, str]]:
    if not path.is_file():
        raise DataError(f"{path}: not a file." if path.exists() else f"{path}: no such file.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: the file is UTF-16. Save it as UTF-8.")
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    decoded = []
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8").strip(" \t\r")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line).") from None
        if text:
            decoded.append((number, text))
    return decoded


def _record(text: str, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) != len(pairs):
            raise DataError(f"{where}: a field stands twice in the row.")
        return record

    try:
        record = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON (column {error.colno}): {error.msg.lower()}.") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply.") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: a row must be a JSON object with fields; this is a {type(record).__name__}.")
    return record


def _conversation(record: Mapping[str, Any], where: str) -> tuple[str, tuple[Turn, ...]]:
    if "messages" in record:
        return "messages", _messages(record["messages"], where)
    for shape, (questions, answers) in SHAPES.items():
        question = next((field for field in questions if field in record), None)
        answer = next((field for field in answers if field in record), None)
        if question and answer:
            text = _text(record, question, where)
            if record.get("input") not in (None, ""):
                text = f"{text}\n\n{_text(record, 'input', where)}"
            return shape, (Turn("user", text), Turn("assistant", _text(record, answer, where)))
    fields = ", ".join(sorted(repr(str(name)) for name in record)) or "none"
    raise DataError(
        f"{where}: no shape of row has these fields ({fields}). Use messages, instruction + response, "
        "prompt + completion, or question + answer."
    )


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: field {field!r} must be text, not {_json_type(value)}.")
    if not value.strip():
        raise DataError(f"{where}: field {field!r} is blank.")
    if "\x00" in value:
        raise DataError(f"{where}: field {field!r} has a NUL character.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: field {field!r} has half of a surrogate pair.") from None
    return value


def _messages(value: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field 'messages' must be a list with at least a user and an assistant turn.")
    turns: list[Turn] = []
    for index, item in enumerate(value):
        place = f"{where}: messages[{index}]"
        if not isinstance(item, dict) or "role" not in item or "content" not in item:
            raise DataError(f"{place}: must be an object with 'role' and 'content'.")
        expected = ("user",) if turns and turns[-1].role != "user" else ("assistant",) if turns else ("system", "user")
        if turns and turns[-1].role == "system":
            expected = ("user",)
        if item["role"] not in expected:
            raise DataError(f"{place}: the role must be {' or '.join(expected)} here.")
        turns.append(Turn(item["role"], _text(item, "content", place)))
    if turns[-1].role != "assistant":
        raise DataError(f"{where}: the last message must be the assistant's.")
    return tuple(turns)


def _json_type(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object")
