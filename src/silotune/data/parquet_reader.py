"""Records from Parquet files, a batch of rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from silotune.data.files import MOST_RATIO, MOST_ROW, printable, require_file
from silotune.data.records import Record
from silotune.errors import DataError

BATCH = 16
"""Rows unpacked at a time, so that what is held is bounded by their size."""


def parquet_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file.

    Raises:
        DataError: it is damaged, has two columns of one name, or unpacks to far more than it is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size, shown = require_file(path), printable(path)
    try:
        with pq.ParquetFile(path, memory_map=True, thrift_string_size_limit=1 << 20) as file:
            _require_bounds(file.metadata, size, shown)
            names = file.schema_arrow.names
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                first = names.index(twice)
                raise DataError(f"{shown}: columns {first + 1} and {names.index(twice, first + 1) + 1} have one name.")
            number = 0
            for batch in file.iter_batches(batch_size=BATCH, use_threads=False):
                if batch.nbytes > BATCH * MOST_ROW:
                    raise DataError(f"{shown}: row {number + 1}: rows of more than {MOST_ROW >> 20} MiB.")
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(number, f"{shown}: row {number}", fields)
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise DataError(
            f"{shown}: not a sound Parquet file ({type(error).__name__}). Copy or write it again."
        ) from None


def _require_bounds(metadata: Any, size: int, shown: str) -> None:
    """Refuse a file that claims to unpack to far more than it is."""
    groups = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    if sum(groups) > max(MOST_ROW, MOST_RATIO * size):
        raise DataError(f"{shown}: unpacks to {sum(groups) >> 20} MiB, more than {MOST_RATIO} times its size.")
