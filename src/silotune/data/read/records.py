"""What stands in a file of rows, before anything is known of what it means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """The fields of a row, and where it stands."""

    number: int
    """Number of its first line in the file (Parquet, datasets: of its row), from 1."""
    where: str
    """Its place as messages name it."""
    fields: Mapping[str, object]


def json_type(value: object) -> str:
    """What a value is called in messages."""
    names = {
        type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
        bytes: "binary data",
    }  # fmt: skip
    return names.get(type(value), "an object")


def twice(names: Sequence[str]) -> tuple[int, int] | None:
    """Positions, from 1, of the first name that stands twice."""
    first: dict[str, int] = {}
    for position, name in enumerate(names, 1):
        if name in first:
            return first[name], position
        first[name] = position
    return None
