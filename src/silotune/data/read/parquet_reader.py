"""Records from Parquet files, a row at a time.

A small file may claim to hold any amount of text: one value of a dictionary, pointed at again and again. So what comes
out is counted as that of a packed file is, and a row is unpacked only when it is known to be no longer than it may be.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from silotune.data.read.files import (
    FREE_BYTES,
    MOST_RATIO,
    MOST_ROW,
    printable,
    require_file,
    require_text,
    start_of,
    too_long,
)
from silotune.data.read.records import Record, twice
from silotune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MEASURED_ROWS = 1024
"""Rows of lists that are measured at a time, fewer where they are long."""
LEAST_VALUE = 8
"""Bytes that a value counts at least: what its place in a list takes in memory."""


def parquet_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file.

    Raises:
        DataError: it is damaged, has two columns of one name, a value that Python has no word for, or a row that is
            too long; or it unpacks to far more than it is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size, shown = require_file(path), printable(path)
    # Mapped: Arrow holds a whole column of a row group, and mapped pages may leave the memory again.
    options = {"memory_map": True, "thrift_string_size_limit": 1 << 20}
    try:
        with pq.ParquetFile(path, **options) as file:
            bound = _Bound(size, shown)
            _require_claims(file.metadata, bound)
            _require_names(file.schema_arrow.names, shown)
            lists = _lists(file)
        if lists:
            with pq.ParquetFile(path, read_dictionary=lists, **options) as file:
                _measure_lists(file, lists, _Bound(size, shown))
        with pq.ParquetFile(path, **options) as file:
            # One row at a time: sixteen that share a long text would each hold a copy of it.
            for number, batch in enumerate(file.iter_batches(batch_size=1, use_threads=False), 1):
                where = f"{shown}: row {number}"
                columns = [_plain(column) for column in batch.columns]
                held = sum(column.nbytes for column in columns)
                if held > MOST_ROW:
                    raise too_long(where)
                bound.count(held)
                yield Record(number, where, _fields(batch.schema.names, columns, where))
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, pa.ArrowException) and not (start := start_of(path)).startswith(b"PAR1"):
            require_text(start, shown)
        raise DataError(
            f"{shown}: not a sound Parquet file ({type(error).__name__}). Copy or write it again."
        ) from None


class _Bound:
    """Counts what comes out of a file and refuses too much."""

    def __init__(self, size: int, shown: str) -> None:
        self._left = self._most = max(FREE_BYTES, MOST_RATIO * size)
        self.shown = shown

    def count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise DataError(
                f"{self.shown}: unpacks to more than {self._most >> 20} MiB, more than {MOST_RATIO} times its size. "
                "Write it as several files, or as JSON Lines, if it is what it should be."
            )

    def claim(self, size: int) -> None:
        """Refuse what would be too much, without counting it."""
        left = self._left
        self.count(size)
        self._left = left


def _require_claims(metadata: "pq.FileMetaData", bound: _Bound) -> None:
    """Refuse a file that says of itself that it unpacks to far more than it is."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    bound.claim(sum(group.total_byte_size for group in groups))
    values = (group.column(index).num_values for group in groups for index in range(group.num_columns))
    bound.claim(LEAST_VALUE * sum(values))


def _require_names(names: list[str], shown: str) -> None:
    if places := twice(names):
        raise DataError(f"{shown}: columns {places[0]} and {places[1]} have one name.")


def _plain(column: "pa.Array") -> "pa.Array":
    """A column of categories as what they stand for."""
    import pyarrow as pa

    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _fields(names: list[str], columns: "list[pa.Array]", where: str) -> dict[str, object]:
    """The fields of a row: columns of one value each."""
    fields = {}
    for name, column in zip(names, columns, strict=True):
        try:
            (fields[name],) = column.to_pylist()
        except (ValueError, OverflowError, LookupError):
            raise DataError(
                f"{where}: column {printable(name)!r} holds a value of type {printable(column.type)} that cannot be "
                "read (a date or time out of range, for example). Leave the column out, or write it as text."
            ) from None
    return fields


# ------------------------------------------------------------------------------------------------ lists


def _lists(file: "pq.ParquetFile") -> list[str]:
    """Paths of texts inside lists, such as the contents of messages: a row may have any number of them."""
    columns = (file.schema.column(index) for index in range(len(file.schema)))
    texts = (column for column in columns if column.physical_type == "BYTE_ARRAY")
    return [
        column.path for column in texts if column.max_repetition_level > 0 and column.logical_type.type != "DECIMAL"
    ]


def _measure_lists(file: "pq.ParquetFile", lists: list[str], bound: _Bound) -> None:
    """Refuse rows whose lists are too long, while their texts are still numbers that point into a dictionary."""
    number = 0
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        mean = group.total_byte_size // max(1, group.num_rows)
        rows = max(1, min(MEASURED_ROWS, MOST_ROW // max(1, mean)))
        for batch in file.iter_batches(batch_size=rows, row_groups=[index], columns=lists, use_threads=False):
            sizes = np.sum([_sizes(column) for column in batch.columns], axis=0)
            if sizes.max(initial=0) > MOST_ROW:
                raise too_long(f"{bound.shown}: row {number + int(np.argmax(sizes > MOST_ROW)) + 1}")
            bound.count(int(sizes.sum()))
            number += len(sizes)


def _sizes(array: "pa.Array") -> NDArray[np.int64]:
    """(elements,) int64: bytes of text in each, however deep in lists and structures."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return np.asarray(pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        ends = np.concatenate([[0], np.cumsum(_sizes(_elements(array)))])
        return np.asarray(np.diff(ends[array.offsets.to_numpy()]))
    if pa.types.is_fixed_size_list(kind):
        return np.asarray(_sizes(array.values).reshape(len(array), kind.list_size).sum(axis=1))
    if pa.types.is_struct(kind):
        return np.asarray(np.sum([_sizes(part) for part in array.flatten()], axis=0))
    return np.zeros(len(array), np.int64)


def _elements(array: "pa.Array") -> "pa.Array":
    """The elements of all lists in one array, as the lists' offsets count them."""
    import pyarrow as pa

    if not pa.types.is_map(array.type):
        return array.values
    return pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
