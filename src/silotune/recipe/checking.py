"""A parsed document as a Recipe, or the first thing in it that cannot be used, in words."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from silotune.errors import RecipeError
from silotune.settings import Recipe

Settings = TypeVar("Settings", bound=BaseModel)

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def check_recipe(document: Mapping[str, object], source: str) -> Recipe:
    """Turn a parsed document into a Recipe; `source` names it in messages.

    Raises:
        RecipeError: naming the first key that cannot be used.
    """
    return checked(Recipe, document, source, "docs/recipe.md lists every key")


def checked(section: type[Settings], document: Mapping[str, object], source: str, keys: str) -> Settings:
    """Turn a parsed document into settings.

    Args:
        section: the kind of settings.
        document: to turn into them.
        source: what messages call it.
        keys: where all keys are told, as the end of a sentence.

    Raises:
        RecipeError: naming the first key that cannot be used.
    """
    try:
        return section.model_validate(_with_floats(section, document))
    except ValidationError as error:
        raise RecipeError(f"{source}: {_explain(error, section, keys)}") from None


def _with_floats(section: type[BaseModel], values: object) -> object:
    """Let an integer stand where a float is meant (TOML writes `alpha = 16`); strict mode refuses all else."""
    if not isinstance(values, Mapping):
        return values
    converted = dict(values)
    for key, value in values.items():
        field = section.model_fields.get(key)
        if field is None:
            continue
        below = _section_in(field.annotation)
        if below is not None and isinstance(value, Mapping):
            converted[key] = _with_floats(below, value)
        elif type(value) is int and float in _parts(field.annotation):
            converted[key] = float(value) if abs(value) < 1 << 53 else value
    return converted


def _parts(annotation: object) -> Iterator[object]:
    """A type and all types that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _section_in(annotation: object) -> type[BaseModel] | None:
    """The section that a setting holds, alone, in a list or as one of several."""
    return next((part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _explain(error: ValidationError, root: type[BaseModel], keys: str) -> str:
    """The first thing that is wrong, with the key it stands at; of a value that may be several things, all of it."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    named, unknown, section = _place(first["loc"], root)
    if first["type"] == "extra_forbidden" and unknown and section is not None:
        near = difflib.get_close_matches(unknown.lower(), section.model_fields, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"remove it; {keys}."
        return f"{named}: unknown key; {hint}"
    if not named:
        return f"{first['msg'].removeprefix('Value error, ')}."
    if first["type"] == "missing":
        return f"{named}: this key is missing."
    reasons = [_reason(first)]
    for other in errors[1:]:
        place = _place(other["loc"], root)[0]
        if place == named or place.startswith(f"{named}["):
            reasons.append(f"{place}: {_reason(other)}" if place != named else _reason(other))
    return f"{named}: {', or '.join(dict.fromkeys(reasons))}{_given(first['input'])}."


def _reason(error: "ErrorDetails") -> str:
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "must be a table of keys"
    return message[0].lower() + message[1:]


def _given(value: object) -> str:
    if isinstance(value, int) and not -(1 << 64) < value < 1 << 64:
        return " (given: a number of absurd size)"
    return f" (given: {repr(value)[:80]})" if isinstance(value, (str, int, float, bool)) else ""


def _place(location: Sequence[str | int], root: type[BaseModel]) -> tuple[str, str, type[BaseModel] | None]:
    """The key at a location of pydantic's (its own tags left out), the unknown part of it, and the section there."""
    section: type[BaseModel] | None = root
    named, inside = "", True
    for number, part in enumerate(location, 1):
        if isinstance(part, int):
            named += f"[{part}]"
            inside = section is not None
        elif section is not None and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            named += f".{part}"
            section = _section_in(annotation)
            inside = section is not None and section is annotation
        elif number == len(location) and inside:
            return f"{named}.{part}".lstrip("."), str(part), section
    return named.lstrip("."), "", section
