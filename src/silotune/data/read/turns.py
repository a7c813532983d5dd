"""Lists of turns, in OpenAI's form (`messages`) and ShareGPT's (`conversations`), checked turn by turn.

A turn may say that it carries no loss: `weight: 0`, `train: false`, `loss: false` or `mask: true`. An assistant's turn
may hold what it thought (`reasoning_content`, `thinking` or `reasoning`) and the tools that it calls (`tool_calls`, or
ShareGPT's `function_call` turns). Messages of errors name lines and fields, never their text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from silotune.data.read.files import printable
from silotune.data.read.json_reader import parsed
from silotune.data.read.records import json_type
from silotune.data.read.rows import THOUGHTS, Role, Turn
from silotune.errors import DataError


@dataclass(frozen=True)
class Form:
    """How the turns of a list are written."""

    speaker: str
    said: str
    roles: Mapping[str, Role]


MESSAGES = Form("role", "content", {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
})  # fmt: skip
SHAREGPT = Form("from", "value", {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "function_call": "assistant", "tool": "tool", "observation": "tool",
})  # fmt: skip
FORMS: Mapping[str, Form] = {"messages": MESSAGES, "conversations": SHAREGPT}

SWITCHES: Mapping[str, bool] = {"weight": True, "train": True, "loss": True, "mask": False}
"""Keys that say of a turn whether it carries loss, and which value says that it does."""
CALLS = ("tool_calls", "function_call")
"""Keys under which a turn may call tools: several, or one."""
ASSISTANT_ONLY = (*CALLS, *THOUGHTS)
TOOL_ONLY = ("name", "tool_call_id")


def turns_of(value: object, field: str, where: str, form: Form) -> tuple[Turn, ...]:
    """The turns of a list, whoever speaks last.

    Raises:
        DataError: it is no list of turns, or the roles are not in turn.
    """
    name = printable(field)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field {name!r} must be a list with at least a user and an assistant turn.")
    turns: list[Turn] = []
    for index, item in enumerate(value):
        place = f"{where}: {name}[{index}]"
        if not isinstance(item, dict) or form.speaker not in item:
            raise DataError(
                f"{place}: must be an object with {form.speaker!r} and {form.said!r}.{_hint(item, form, name)}"
            )
        if not isinstance(item[form.speaker], str):
            raise DataError(f"{place}: {form.speaker!r} must be text, not {json_type(item[form.speaker])}.")
        _require_plain_keys(item, place, form)
        role = form.roles.get(item[form.speaker])
        _require_turn(role, turns, place, form)
        assert role is not None
        turns.append(_turn(item, role, place, form))
    return tuple(turns)


def answered(turns: tuple[Turn, ...], field: str, where: str) -> tuple[Turn, ...]:
    """The same turns, if they end with an answer that can be learned from.

    Raises:
        DataError: they end with somebody else, or no answer carries loss.
    """
    if turns[-1].role != "assistant":
        raise DataError(f"{where}: {printable(field)}: the last turn must be the assistant's. Remove what comes after.")
    if not any(turn.learned for turn in turns if turn.role == "assistant"):
        raise DataError(f"{where}: {printable(field)}: no answer carries loss, so there is nothing to learn. Leave the "
                        "row out, or let one of its answers count.")  # fmt: skip
    return turns


def _hint(item: object, form: Form, field: str) -> str:
    """What to do where a key is missing: it is nearly there, or the list is in the other form."""
    if not isinstance(item, dict):
        return ""
    known = {form.speaker, form.said}
    near = [key for key in item if key not in known and key.strip().lower() in known]
    if near:
        return f" Write {near[0].strip().lower()!r} in small letters and without blanks."
    other = next((meaning for meaning, one in FORMS.items() if {one.speaker, one.said} <= item.keys()), None)
    return f' Its turns are {other}: set data.fields = {{ {other} = "{field}" }}.' if other else ""


def _require_plain_keys(item: Mapping[str, object], place: str, form: Form) -> None:
    """Refuse a key that is nearly one that a turn has, and which would be passed over: `Weight`, `content `."""
    for key, value in item.items():
        meant = key.strip().lower()
        if key != meant and meant in _keys(form) and meant not in item and _holds(value):
            raise DataError(
                f"{place}: the key {printable(key)!r} is not read as {meant!r}. Names are in small letters and without "
                "blanks around them: rename it."
            )


def _keys(form: Form) -> set[str]:
    """The keys of a turn that are read."""
    return {form.speaker, form.said, *SWITCHES, *ASSISTANT_ONLY, *TOOL_ONLY}


def _require_turn(role: Role | None, turns: Sequence[Turn], place: str, form: Form) -> None:
    """Refuse a role that nobody has, or whose turn it is not."""
    expected = _expected(turns)
    if role in expected:
        return
    if role is None:
        raise DataError(f"{place}: {form.speaker!r} must be one of {', '.join(form.roles)}; here {_or(expected)}.")
    if role == "assistant" and all(turn.role == "system" for turn in turns):
        raise DataError(
            f"{place}: the role must be {_or(expected)} here: the assistant speaks first. Put the user's turn before "
            "it, or move what it says into the system turn."
        )
    if turns and turns[-1].role == role:
        raise DataError(f"{place}: the role must be {_or(expected)} here. Join the two {role} turns into one.")
    raise DataError(f"{place}: the role must be {_or(expected)} here. Put the turns into order, or leave the row out.")


def _expected(turns: Sequence[Turn]) -> tuple[Role, ...]:
    """Which role may speak next."""
    if not turns:
        return ("system", "user")
    following: Mapping[Role, tuple[Role, ...]] = {
        "system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool"),
    }  # fmt: skip
    return following[turns[-1].role]


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)


# ------------------------------------------------------------------------------------------------- one turn


def _turn(item: Mapping[str, object], role: Role, place: str, form: Form) -> Turn:
    for keys, owner in ((ASSISTANT_ONLY, "assistant"), (TOOL_ONLY, "tool")):
        misplaced = [key for key in keys if key != "name" and role != owner and _holds(item.get(key))]
        if misplaced:
            raise DataError(f"{place}: {misplaced[0]} belongs to the {owner}'s turns. Remove it here.")
    turn = Turn(role, _content(item, role, place, form), learned=_learned(item, role, place))
    if role == "tool":
        name, call = (checked(item[key], key, place) if _holds(item.get(key)) else None for key in TOOL_ONLY)
        return replace(turn, name=name, tool_call_id=call)
    if role != "assistant":
        return turn
    turn = replace(turn, reasoning=_reasoning(item, place))
    calling = [key for key in CALLS if _holds(item.get(key))]
    spoken = ["from"] if item[form.speaker] == "function_call" else []
    if len(calling + spoken) > 1:
        raise DataError(f"{place}: {' and '.join(calling + spoken)} both call tools. Keep one of them.")
    if spoken:
        return replace(turn, content="", tool_calls=_calls(turn.content, form.said, place))
    return replace(turn, tool_calls=_calls(item[calling[0]], calling[0], place)) if calling else turn


def _holds(value: object) -> bool:
    """Whether something stands in a field."""
    return value is not None and value != "" and value != [] and value != {}


def _content(item: Mapping[str, object], role: Role, place: str, form: Form) -> str:
    may_be_blank = role == "tool" or (role == "assistant" and any(_holds(item.get(key)) for key in CALLS))
    value = item.get(form.said)
    if may_be_blank and (value is None or value == []):
        return ""
    if form.said not in item:
        raise DataError(f"{place}: must be an object with {form.speaker!r} and {form.said!r}.{_hint(item, form, '')}")
    if isinstance(value, list):
        value = "\n".join(_part(part, form.said, place) for part in value)
    return checked(value, form.said, place, blank=may_be_blank)


def _part(part: object, field: str, place: str) -> str:
    """The text of one of several parts of a content."""
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        if switch := next((key for key in SWITCHES if _switch(part, key) is False), None):
            raise DataError(
                f"{place}: {field!r} has a part with {switch!r}. Only a whole turn can be exempt from the loss: set it "
                "there, or leave the row out."
            )
        return str(part["text"])
    raise DataError(f"{place}: {field!r} has a part that is no text. Only text can be learned; leave the row out.")


def _learned(item: Mapping[str, object], role: Role, place: str) -> bool:
    """Whether a turn's own switches let it carry loss; those of other turns than the assistant's change nothing."""
    found = True
    for key in SWITCHES if role == "assistant" else ():
        carries = _switch(item, key)
        if carries is not None and not isinstance(carries, bool):
            raise DataError(f"{place}: {key!r} must be 0 or 1, true or false: a turn carries loss or it does not.")
        found = found and carries is not False
    return found


def _switch(item: Mapping[str, object], key: str) -> object:
    """Whether a key says that its turn carries loss; None: it says nothing; any other value: it cannot be meant."""
    value = item.get(key)
    if value is None or (key == "loss" and not isinstance(value, bool) and value not in (0, 1)):  # a figure
        return None
    return bool(value) == SWITCHES[key] if value in (0, 1) else value


def _reasoning(item: Mapping[str, object], place: str) -> str | None:
    given = [key for key in THOUGHTS if _holds(item.get(key))]
    if len(given) > 1:
        raise DataError(f"{place}: {' and '.join(given)} both say what the assistant thought. Keep one of them.")
    return checked(item[given[0]], given[0], place) if given else None


def _calls(value: object, field: str, place: str) -> str:
    """Calls of tools as JSON, in OpenAI's form: of a list of them, of one, or of the JSON of either."""
    found = parsed(value, place) if isinstance(value, str) else value
    listed = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) for call in listed):
        raise DataError(
            f"{place}: {field!r} must be a list of calls, each with a name and arguments, or the JSON of one."
        )
    return _written([_call(call, f"{place}: {field}[{index}]") for index, call in enumerate(listed)], place)


CALL = {"id", "type", "index"}
"""Keys of a call beside its function."""
ARGUMENTS = ("arguments", "parameters")


def _call(call: Mapping[str, object], place: str) -> dict[str, object]:
    function = call.get("function", {key: value for key, value in call.items() if key not in CALL})
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise DataError(f"{place}: must be an object with a function's 'name' and 'arguments'.")
    around = {key: value for key, value in call.items() if key not in CALL} if "function" in call else {}
    others = [key for part, known in ((function, ("name", *ARGUMENTS)), (around, ("function",)))
              for key, value in part.items() if key not in known and _holds(value)]  # fmt: skip
    given = [key for key in ARGUMENTS if function.get(key) is not None]
    if others or len(given) > 1 or call.get("type", "function") not in ("function", None):
        raise DataError(
            f"{place}: has more than a function's 'name' and 'arguments', or is of another type. Rename its arguments "
            "so and remove the rest, or leave the row out."
        )
    arguments = function[given[0]] if given else {}
    if not isinstance(arguments, (dict, str)):
        raise DataError(f"{place}: {given[0]!r} must be an object or its JSON, not {json_type(arguments)}.")
    named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def tools_of(value: object, field: str, where: str) -> str | None:
    """A row's tools as JSON: a list of their descriptions, or the JSON of one; None for an empty one.

    Raises:
        DataError: they are none.
    """
    name = printable(field)
    if isinstance(value, str):
        value = parsed(value, f"{where}: field {name!r}")
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"{where}: field {name!r} must be a list of tools, each an object, or its JSON.")
    return _written(value, where) if value else None


def _written(value: object, place: str) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return checked(text, "tools", place)


def unread(turns: object, name: str, form: Form) -> set[str]:
    """Keys of turns that are not read, where something stands in them."""
    read = _keys(form)
    found = set()
    for turn in turns if isinstance(turns, list) else ():
        for key, value in turn.items() if isinstance(turn, dict) else ():
            role = form.roles.get(str(turn.get(form.speaker)))
            if key in SWITCHES and role != "assistant" and _switch(turn, key) not in (None, False):
                found.add(f"{name}[].{key} of turns that are not the assistant's")
            elif (_holds(value) and (key not in read or (key == "name" and role != "tool"))) or (
                key == "loss" and value is not None and _switch(turn, key) is None
            ):
                found.add(f"{name}[].{key}")
            elif key == form.said and isinstance(value, list):
                more = (other for part in value if isinstance(part, dict) for other in part if _holds(part[other]))
                found |= {f"{name}[].{key}[].{other}" for other in more if other not in ("type", "text")}
    return found


# --------------------------------------------------------------------------------------------------- texts


def checked(value: object, field: str, where: str, blank: bool = False) -> str:
    """Return text that can be used as it is.

    Raises:
        DataError: no text, blank (unless it may be), or with characters that no text has.
    """
    name = printable(field)
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} must be text, not {json_type(value)}. Write it as text.")
    if not blank and not value.strip():
        raise DataError(f"{where}: field {name!r} is blank. Fill it, or leave the row out.")
    if "\x00" in value:
        raise DataError(f"{where}: field {name!r} has a NUL character. Remove it.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: field {name!r} has half of a surrogate pair. Write the text as UTF-8.") from None
    return value
