"""What the fields of a record mean: its shape is recognised from the first record and holds for the whole file.

    messages                                    a list of {"role", "content"}: system, user, assistant
    conversations                               ShareGPT's list of {"from", "value"}: system, human, gpt
    instruction [input] output | response       one question, one answer
    prompt, completion | response               the same
    question, answer                            the same
    prompt, chosen, rejected                    a preference pair
    text                                        plain text

A pair may have a `system` turn, any row a `label`. Where the fields are called otherwise, or fit two shapes, the
recipe says what they are (`data.fields`). Messages name lines and fields, never their text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from silotune.data.files import printable
from silotune.data.records import Record, json_type
from silotune.data.rows import Role, Row, Turn
from silotune.errors import DataError


@dataclass(frozen=True)
class Shape:
    """A shape and the field that each meaning stands in."""

    name: str
    fields: Mapping[str, str]
    """From meaning to field."""


PAIRS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "instruction/response": ("instruction", ("response", "output")),
    "prompt/completion": ("prompt", ("completion", "response")),
    "question/answer": ("question", ("answer",)),
}
KNOWN = frozenset({"messages", "conversations", "text", "prompt", "chosen", "rejected", "instruction", "response",
                   "output", "completion", "question", "answer", "input", "system", "label"})  # fmt: skip
"""Names of fields that may be repeated in a message; all others may be anybody's text."""
LONGEST_LABEL = 256
OPTIONAL = {"system": "system", "input": "input", "label": "label"}
"""Fields that a row may have on top; messages, conversations and texts only the label."""


def recognise(record: Record, mapping: Mapping[str, str]) -> Shape:
    """The shape of a file by its first record, or by the recipe's mapping of meanings to fields.

    Raises:
        DataError: no shape, or more than one, has these fields.
    """
    if mapping.keys() - OPTIONAL.keys():
        return _mapped(record, mapping)
    fields = record.fields
    found: list[Shape] = [Shape(name, {name: name}) for name in ("messages", "conversations", "text") if name in fields]
    if {"prompt", "chosen", "rejected"} <= fields.keys():
        found.append(Shape("prompt/chosen/rejected", {name: name for name in ("prompt", "chosen", "rejected")}))
    for name, (prompt, responses) in PAIRS.items():
        found += [
            Shape(name, {"prompt": prompt, "response": response})
            for response in responses
            if prompt in fields and response in fields
        ]
    if len(found) == 1:
        shape = found[0]
        optional = {"label"} | ({"system"} if "prompt" in shape.fields else set())
        if shape.name == "instruction/response":
            optional |= {"input"}
        misfit = sorted(mapping.keys() - optional)
        if misfit:
            raise DataError(
                f"{record.where}: data.fields names {', '.join(misfit)}; rows of {shape.name} have no such."
            )
        added = {meaning: mapping.get(meaning, OPTIONAL[meaning]) for meaning in optional | mapping.keys()}
        return Shape(shape.name, {**shape.fields, **added})
    known = [name for name in sorted(KNOWN) if name in fields]
    others = len(fields) - len(known)
    named = ", ".join([*known, *([f"{others} of other names"] if others else [])]) or "none"
    if found:
        shapes = " and ".join(" + ".join(shape.fields.values()) for shape in found)
        raise DataError(
            f"{record.where}: the fields fit two shapes ({shapes}). Say which is meant with data.fields, "
            'for example fields = { prompt = "instruction", response = "output" }.'
        )
    raise DataError(
        f"{record.where}: no shape of row has these fields ({named}). Use messages, conversations, instruction + "
        "response, prompt + completion, question + answer, prompt + chosen + rejected, or text; or say what they are "
        "with data.fields."
    )


def _mapped(record: Record, mapping: Mapping[str, str]) -> Shape:
    for meaning, name in mapping.items():
        if meaning not in OPTIONAL and name not in record.fields:
            raise DataError(
                f"{record.where}: field {printable(name)!r} is missing; data.fields says that it is the {meaning}."
            )
    return Shape("data.fields", mapping)


def unused(record: Record, shape: Shape) -> set[str]:
    """Fields of a record, and of its turns, that mean nothing in its shape."""
    found = set(record.fields) - set(shape.fields.values())
    for name, keys in (("messages", {"role", "content"}), ("conversations", {"from", "value"})):
        turns = record.fields.get(shape.fields.get(name, ""))
        if isinstance(turns, list):
            others = {key for turn in turns if isinstance(turn, dict) for key in turn} - keys
            found |= {f"{shape.fields[name]}[].{key}" for key in others}
    return found


def require_same(record: Record, shape: Shape, mapping: Mapping[str, str]) -> None:
    """Refuse a record whose fields, other than those of the records before, fit another shape as well.

    Raises:
        DataError: it does.
    """
    needed = {field for meaning, field in shape.fields.items() if meaning not in OPTIONAL}
    if mapping.keys() - OPTIONAL.keys() or not needed <= record.fields.keys():
        return  # the recipe says what is meant; a field that is missing is told where the row is made
    other = recognise(record, mapping)
    if other.name != shape.name:
        raise DataError(
            f"{record.where}: the row is {other.name}, the rows before are {shape.name}. Use one shape a file."
        )


def to_row(record: Record, shape: Shape) -> Row:
    """Turn a record into a row of its file's shape.

    Raises:
        DataError: it has another shape, or a field that cannot be used.
    """
    fields, where = shape.fields, record.where
    label = _label(record, fields.get("label"))
    for name, converse in (("messages", _messages), ("conversations", _conversations)):
        if name in fields:
            return Row(converse(_present(record, fields[name], shape), fields[name], where), record.number, label)
    if "text" in fields:
        return Row((), record.number, label, text=_text(record, fields["text"], shape))
    prompt = _text(record, fields["prompt"], shape)
    if _given(record, fields.get("input")):
        prompt = f"{prompt}\n\n{_text(record, fields['input'], shape)}"
    system = [Turn("system", _text(record, fields["system"], shape))] if _given(record, fields.get("system")) else []
    answer = fields.get("response") or fields["chosen"]
    rejected = _text(record, fields["rejected"], shape) if "rejected" in fields else None
    turns = (*system, Turn("user", prompt), Turn("assistant", _text(record, answer, shape)))
    return Row(turns, record.number, label, rejected=rejected)


def _given(record: Record, field: str | None) -> bool:
    return field is not None and record.fields.get(field) not in (None, "")


def _present(record: Record, field: str, shape: Shape) -> Any:
    if field not in record.fields:
        raise DataError(
            f"{record.where}: field {printable(field)!r} is missing; the rows before are {shape.name}. "
            "Use one shape a file."
        )
    return record.fields[field]


def _text(record: Record, field: str, shape: Shape) -> str:
    return checked(_present(record, field, shape), field, record.where)


def checked(value: Any, field: str, where: str) -> str:
    """Return text that can be used as it is.

    Raises:
        DataError: no text, blank, or with characters that no text has.
    """
    name = printable(field)
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} must be text, not {json_type(value)}.")
    if not value.strip():
        raise DataError(f"{where}: field {name!r} is blank.")
    if "\x00" in value:
        raise DataError(f"{where}: field {name!r} has a NUL character.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: field {name!r} has half of a surrogate pair.") from None
    return value


def _label(record: Record, field: str | None) -> str | None:
    if field is None or (value := record.fields.get(field)) is None:
        return None
    if type(value) is int or isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{record.where}: field {printable(field)!r} must be text or a whole number, "
                        f"not {json_type(value)}.")  # fmt: skip
    if len(value) > LONGEST_LABEL:
        raise DataError(f"{record.where}: field {printable(field)!r} has {len(value)} characters; a label has at most "
                        f"{LONGEST_LABEL}. If it is none, name another with data.fields.")  # fmt: skip
    return checked(value, field, record.where)


def _messages(value: Any, field: str, where: str) -> tuple[Turn, ...]:
    return _answered(messages(value, field, where), field, where)


def messages(value: Any, field: str, where: str) -> tuple[Turn, ...]:
    """The turns of a list of {"role", "content"}, whoever speaks last.

    Raises:
        DataError: it is none, or the roles are not in turn.
    """
    return _turns(value, field, where, "role", "content", lambda role: role)


SHAREGPT: Mapping[str, Role] = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
}  # fmt: skip


def _conversations(value: Any, field: str, where: str) -> tuple[Turn, ...]:
    turns = _turns(value, field, where, "from", "value", lambda name: SHAREGPT.get(name, name))
    return _answered(turns, field, where)


def _answered(turns: tuple[Turn, ...], field: str, where: str) -> tuple[Turn, ...]:
    if turns[-1].role != "assistant":
        raise DataError(f"{where}: {printable(field)}: the last turn must be the assistant's.")
    return turns


def _turns(
    value: Any, field: str, where: str, speaker: str, said: str, role_of: Callable[[str], str]
) -> tuple[Turn, ...]:
    name = printable(field)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field {name!r} must be a list with at least a user and an assistant turn.")
    turns: list[Turn] = []
    for index, item in enumerate(value):
        place = f"{where}: {name}[{index}]"
        if not isinstance(item, dict) or speaker not in item or said not in item:
            raise DataError(f"{place}: must be an object with {speaker!r} and {said!r}.")
        if not isinstance(item[speaker], str):
            raise DataError(f"{place}: {speaker!r} must be text, not {json_type(item[speaker])}.")
        role = role_of(item[speaker])
        expected = _expected(turns)
        if role not in expected:
            raise DataError(f"{place}: the role must be {' or '.join(expected)} here.")
        turns.append(Turn(role, checked(item[said], said, place)))
    return tuple(turns)


def _expected(turns: list[Turn]) -> tuple[Role, ...]:
    """Which role may speak next."""
    if not turns:
        return ("system", "user")
    return ("assistant",) if turns[-1].role == "user" else ("user",)
