"""Rows from a silo's sources, read strictly and streamed: one row is held at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from silotune.data.read.files import printable
from silotune.data.read.readers import read_records
from silotune.data.read.records import Record
from silotune.data.read.rows import Row
from silotune.data.read.shapes import Shape, recognise, require_plain_names, require_same, to_row, unused
from silotune.errors import DataError
from silotune.settings import ON_TOP, TextRows


@dataclass(frozen=True)
class Reading:
    """How a silo's files are to be understood."""

    fields: tuple[tuple[str, str], ...] = ()
    """(meaning, field) of files whose fields are called otherwise; empty: recognised."""
    text_rows: TextRows = "document"
    """What is a row of a `.txt` file."""

    @property
    def mapping(self) -> Mapping[str, str]:
        """From meaning to field."""
        return dict(self.fields)


@dataclass
class Seen:
    """What was seen of a split's files while they were read."""

    shape: str = ""
    unused: dict[str, set[str]] = field(default_factory=dict)
    """By source, fields in which something stands that means nothing in its shape."""


def read_rows(sources: Sequence[str], reading: Reading, seen: Seen | None = None) -> Iterator[tuple[int, Row]]:
    """Yield (number of the source, row) of all rows of a split, in the order of the sources.

    Raises:
        DataError: naming file, line and field, as soon as something is reached that cannot be used as it is.
    """
    for _, number, row in read_with_records(sources, reading, seen):
        yield number, row


def read_with_records(
    sources: Sequence[str], reading: Reading, seen: Seen | None = None
) -> Iterator[tuple[Record, int, Row]]:
    """Like `read_rows`, with each row's record before it."""
    seen = seen if seen is not None else Seen()
    missing = {meaning: name for meaning, name in reading.fields if meaning in ON_TOP["prompt"]}
    for number, source in enumerate(sources):
        shape: Shape | None = None
        layouts: set[frozenset[str]] = set()
        for record in read_records(source, reading.text_rows):
            layout = frozenset(record.fields)
            if shape is None:
                shape = _shape(record, reading, seen)
            elif layout not in layouts:
                require_same(record, shape, reading.mapping)
            if layout not in layouts:
                require_plain_names(record, shape)
                layouts.add(layout)
                missing = {meaning: name for meaning, name in missing.items() if name not in layout}
            if fields := unused(record, shape):
                seen.unused.setdefault(source, set()).update(fields)
            yield record, number, to_row(record, shape)
        if shape is None:
            raise DataError(f"{printable(source)}: the file holds no rows.")
    for meaning, name in missing.items() if sources else ():
        raise DataError(
            f"{printable(sources[0])}: no row has a field {printable(name)!r}, which data.fields calls the {meaning}."
        )


def _shape(record: Record, reading: Reading, seen: Seen) -> Shape:
    shape = recognise(record, reading.mapping)
    if seen.shape and seen.shape != shape.name:
        raise DataError(
            f"{record.where}: the rows are {shape.name}, those of the files before are {seen.shape}. "
            "Use one shape a split."
        )
    seen.shape = shape.name
    return shape
