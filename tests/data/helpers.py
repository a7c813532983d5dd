"""Rows, files of rows in every format, and splits without files."""

import csv
import gzip
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from silotune.data.read.reading import Reading, read_rows
from silotune.data.tokenize.building import build
from silotune.data.tokenize.split import Split
from silotune.data.tokenize.store import opened
from silotune.data.tokenize.tokens import ChatOptions, Example, encode


def example(ids: Any, answered: Any, cut: bool = False) -> Example:
    return Example(np.array(ids, np.int32), np.array(answered, np.bool_), cut)


def split_of(tokenizer: Any, rows: list[Any], max_length: int) -> Split:
    def read(_: Any) -> Any:
        return ((0, row, examples) for row, examples in zip(rows, encode(tokenizer, rows, max_length), strict=True))

    with TemporaryDirectory() as folder:  # what is mapped stays when its file goes
        build(Path(folder), read)
        return Split(opened(Path(folder), max_length, ChatOptions()), np.arange(len(rows)))


def rows_in(*paths: Path | str, **reading: Any) -> list[Any]:
    return [row for _, row in read_rows([str(path) for path in paths], Reading(**reading))]


def as_csv(records: list[dict[str, str]], delimiter: str = ",") -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(records[0]), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue().encode()


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records in the format that the file's name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(records), path)
        return path
    if name.endswith(".jsonl"):
        data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    elif name.endswith(".json"):
        data = json.dumps(records, ensure_ascii=False, indent=1).encode()
    else:
        data = as_csv(records, "\t" if name.endswith(".tsv") else ",")
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path
