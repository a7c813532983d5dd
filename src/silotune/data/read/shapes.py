"""What the fields of a record mean: its shape is recognised from the first record and holds for the whole file.

    messages                                    a list of {"role", "content"}: system, user, assistant, tool
    conversations                               ShareGPT's list of {"from", "value"}: system, human, gpt, tool
    instruction, output | response              one question, one answer
    prompt, completion | response               the same
    question, answer                            the same
    prompt, chosen, rejected                    a preference pair
    text                                        plain text

On top, where it stands in a row: `system` before the turns of a conversation or a question; `tools` that the assistant
may call; `input` and `context` below a question; the `history` of question and answer before it; a `label`. Where the
fields are called otherwise, or fit two shapes, the recipe says what they are (`data.fields`). Messages name lines and
fields, never their text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from silotune.data.read.files import printable
from silotune.data.read.records import Record, json_type
from silotune.data.read.rows import Conversation, Row, Turn
from silotune.data.read.turns import FORMS, answered, checked, tools_of, turns_of, unread
from silotune.errors import DataError
from silotune.settings import ON_TOP


@dataclass(frozen=True)
class Shape:
    """A shape and the field that each meaning stands in."""

    name: str
    fields: Mapping[str, str]
    """From meaning to field."""


BODIES: Sequence[tuple[str, Mapping[str, str]]] = (
    ("messages", {"messages": "messages"}),
    ("conversations", {"conversations": "conversations"}),
    ("text", {"text": "text"}),
    ("prompt/chosen/rejected", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    ("instruction/response", {"prompt": "instruction", "response": "response"}),
    ("instruction/response", {"prompt": "instruction", "response": "output"}),
    ("prompt/completion", {"prompt": "prompt", "response": "completion"}),
    ("prompt/completion", {"prompt": "prompt", "response": "response"}),
    ("question/answer", {"prompt": "question", "response": "answer"}),
)
"""Names of shapes, and their fields by what they mean."""
KNOWN = frozenset(field for _, fields in BODIES for field in fields.values()) | frozenset().union(*ON_TOP.values())
"""Names of fields that may be repeated in a message; all others may be anybody's text."""
LONGEST_LABEL = 256


def recognise(record: Record, mapping: Mapping[str, str]) -> Shape:
    """The shape of a file by its first record, or by the recipe's mapping of meanings to fields.

    Raises:
        DataError: no shape, or more than one, has these fields.
    """
    if mapping.keys() - ON_TOP["prompt"]:
        return _mapped(record, mapping)
    found = [Shape(name, fields) for name, fields in BODIES if set(fields.values()) <= record.fields.keys()]
    if len(found) > 1:
        raise DataError(f"{record.where}: {_several(record, found, mapping)}")
    if not found:
        raise DataError(f"{record.where}: {_none(record)}")
    shape = found[0]
    misfit = sorted(mapping.keys() - _on_top(shape))
    if misfit:
        raise DataError(f"{record.where}: data.fields names {', '.join(misfit)}; rows of {shape.name} have no such.")
    return _with_top(shape, mapping)


def _on_top(shape: Shape) -> frozenset[str]:
    return next(ON_TOP[body] for body in ON_TOP if body in shape.fields)


def _with_top(shape: Shape, mapping: Mapping[str, str]) -> Shape:
    """The shape with what may come on top, under its own name where the recipe gives no other."""
    taken = {*shape.fields.values(), *mapping.values()}
    top = {meaning: mapping.get(meaning, meaning) for meaning in sorted(_on_top(shape))
           if meaning in mapping or meaning not in taken}  # fmt: skip
    return Shape(shape.name, {**shape.fields, **top})


def _several(record: Record, found: Sequence[Shape], mapping: Mapping[str, str]) -> str:
    """What to say of a record that fits several shapes: what each of them would leave out."""
    shapes = " and ".join(" + ".join(shape.fields.values()) for shape in found)
    said = []
    for shape in found:
        filled = [field for field, value in record.fields.items() if not _blank(value)]
        whole = {meaning: field for meaning, field in _with_top(shape, mapping).fields.items()
                 if field in filled or meaning in shape.fields}  # fmt: skip
        left = [field for field in filled if field not in whole.values()]
        written = ", ".join(f'{meaning} = "{printable(field)}"' for meaning, field in whole.items())
        said.append(f"fields = {{ {written} }}" + (f", which leaves out {_named(left)}" if left else ""))
    return f"the fields fit two shapes ({shapes}). Say which is meant with data.fields: {'; or '.join(said)}."


def _none(record: Record) -> str:
    near = {name: name.strip().lower() for name in record.fields
            if name not in KNOWN and name.strip().lower() in KNOWN}  # fmt: skip
    advice = (
        "Use messages, conversations, instruction + response, prompt + completion, question + answer, prompt + chosen "
        "+ rejected, or text; or say what they are with data.fields."
    )
    if near:
        pairs = ", ".join(f"{printable(name)!r} ({meant})" for name, meant in near.items())
        advice = f"Names are in small letters and without blanks around them: rename {pairs}."
    return f"no shape of row has these fields ({_named(list(record.fields))}). {advice}"


def _named(fields: Sequence[str]) -> str:
    """Names of fields, of which only known ones are repeated."""
    known = [name for name in sorted(fields) if name in KNOWN]
    others = len(fields) - len(known)
    return ", ".join([*known, *([f"{others} of other names"] if others else [])]) or "none"


def _mapped(record: Record, mapping: Mapping[str, str]) -> Shape:
    for meaning, name in mapping.items():
        if meaning not in ON_TOP["prompt"] and name not in record.fields:
            raise DataError(
                f"{record.where}: field {printable(name)!r} is missing; data.fields says that it is the {meaning}."
            )
    body = {meaning: name for meaning, name in mapping.items() if meaning not in ON_TOP["prompt"]}
    return _with_top(Shape("data.fields", body), mapping)


def require_plain_names(record: Record, shape: Shape) -> None:
    """Refuse a field whose name is nearly one that the shape has, and which would be passed over: `Input`, `system `.

    Raises:
        DataError: there is one.
    """
    for name in record.fields.keys() - set(shape.fields.values()):
        meant = name.strip().lower()
        if name != meant and shape.fields.get(meant) == meant and meant not in record.fields:
            raise DataError(
                f"{record.where}: field {printable(name)!r} is not read as {meant!r}. Names are in small letters and "
                "without blanks around them: rename it, or say what it is with data.fields."
            )


def unused(record: Record, shape: Shape) -> set[str]:
    """Fields of a record, and of its turns, in which something stands that means nothing in its shape."""
    used = shape.fields.values()
    found = {name for name, value in record.fields.items() if name not in used and not _blank(value)}
    for meaning, form in FORMS.items():
        if meaning in shape.fields:
            name = shape.fields[meaning]
            found |= unread(record.fields.get(name), name, form)
    return found


def require_same(record: Record, shape: Shape, mapping: Mapping[str, str]) -> None:
    """Refuse a record whose fields, other than those of the records before, fit another shape as well.

    Raises:
        DataError: it does.
    """
    needed = {field for meaning, field in shape.fields.items() if meaning not in ON_TOP["prompt"]}
    if mapping.keys() - ON_TOP["prompt"] or not needed <= record.fields.keys():
        return  # the recipe says what is meant; a field that is missing is told where the row is made
    other = recognise(record, mapping)
    if other.name != shape.name:
        raise DataError(
            f"{record.where}: the row is {other.name}, the rows before are {shape.name}. Use one shape a file."
        )


# ---------------------------------------------------------------------------------------------------- rows


def to_row(record: Record, shape: Shape) -> Row:
    """Turn a record into a row of its file's shape.

    Raises:
        DataError: it has another shape, or a field that cannot be used.
    """
    fields, where = shape.fields, record.where
    label = _label(record, fields.get("label"))
    if "text" in fields:
        return Row((), record.number, label, text=_text(record, fields["text"], shape))
    asked = asked_in(record, shape)
    meaning = next((meaning for meaning in FORMS if meaning in fields), None)
    if meaning is not None:
        return Row(answered(asked.turns, fields[meaning], where), record.number, label, tools=asked.tools)
    answer = fields.get("response") or fields["chosen"]
    rejected = _text(record, fields["rejected"], shape) if "rejected" in fields else None
    turns = (*asked.turns, Turn("assistant", _text(record, answer, shape)))
    return Row(turns, record.number, label, rejected=rejected, tools=asked.tools)


def asked_in(record: Record, shape: Shape) -> Conversation:
    """All turns of a list of turns; of a record that asks one question, those up to its answer.

    Raises:
        DataError: a field cannot be used.
    """
    fields = shape.fields
    tools = _tools(record, fields.get("tools"))
    for meaning, form in FORMS.items():
        if meaning in fields:
            turns = turns_of(_present(record, fields[meaning], shape), fields[meaning], record.where, form)
            return Conversation(_after_system(record, fields.get("system"), turns), tools)
    asked = [_text(record, fields["prompt"], shape)]
    asked += [_text(record, fields[more], shape) for more in ("input", "context") if _given(record, fields.get(more))]
    before = _history(record, fields.get("history"))
    turns = (*before, Turn("user", "\n\n".join(asked)))
    return Conversation(_after_system(record, fields.get("system"), turns), tools)


def _after_system(record: Record, field: str | None, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns with the record's own system turn before them."""
    if field is None or not _given(record, field):
        return turns
    own = Turn("system", checked(record.fields[field], field, record.where))
    if turns[0].role != "system":
        return (own, *turns)
    if turns[0].content != own.content:
        raise DataError(
            f"{record.where}: field {printable(field)!r} and the first turn are two system turns. Keep one of them."
        )
    return turns


def _history(record: Record, field: str | None) -> tuple[Turn, ...]:
    """What was asked and answered before: a list of [question, answer]."""
    if field is None or not _given(record, field):
        return ()
    value, name = record.fields[field], printable(field)
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise DataError(f"{record.where}: field {name!r} must be a list of [question, answer], oldest first.")
    turns: list[Turn] = []
    for index, (asked, said) in enumerate(value):
        place = f"{field}[{index}]"
        turns.append(Turn("user", checked(asked, place, record.where)))
        turns.append(Turn("assistant", checked(said, place, record.where)))
    return tuple(turns)


def _tools(record: Record, field: str | None) -> str | None:
    if field is None or not _given(record, field):
        return None
    return tools_of(record.fields[field], field, record.where)


def _given(record: Record, field: str | None) -> bool:
    return field is not None and not _blank(record.fields.get(field))


def _blank(value: object) -> bool:
    """Whether nothing stands in a field."""
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def _present(record: Record, field: str, shape: Shape) -> object:
    if field not in record.fields:
        raise DataError(
            f"{record.where}: field {printable(field)!r} is missing; the rows before are {shape.name}. "
            "Use one shape a file."
        )
    return record.fields[field]


def _text(record: Record, field: str, shape: Shape) -> str:
    return checked(_present(record, field, shape), field, record.where)


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
