"""How the tokenised rows of files come to the disk: read, encoded and written in blocks.

What is held in memory is a block of rows and some 60 bytes a row, however large the files.
"""

import itertools
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from silotune.data.read.readers import place
from silotune.data.read.reading import Reading, Seen, read_rows
from silotune.data.read.rows import Row
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.data.tokenize.tokens import ChatOptions, Example, RowError, encode
from silotune.errors import DataError

BLOCK_ROWS, BLOCK_BYTES = 512, 4 << 20
"""Rows are tokenised in blocks of so many, or of so many bytes of text."""
Block = list[tuple[int, Row]]
"""(number of the source, row)"""


@dataclass(frozen=True)
class Described:
    """What holds for all rows of a store."""

    shape: str
    unused: Mapping[str, tuple[str, ...]]
    """Fields that were read past, by the name of their file."""
    labels: tuple[str, ...]
    """Values of the label field, in the order of their first row."""
    pairs: bool
    """Whether the rows are preference pairs."""


@dataclass
class _Index:
    """What is kept of each row and example while a store is built."""

    offsets: "array[int]" = field(default_factory=lambda: array("q", [0]))
    rows: "array[int]" = field(default_factory=lambda: array("i"))
    loss_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    cut: "array[int]" = field(default_factory=lambda: array("b"))
    answer_cut: "array[int]" = field(default_factory=lambda: array("b"))
    thoughts_dropped: "array[int]" = field(default_factory=lambda: array("b"))
    places: "array[int]" = field(default_factory=lambda: array("i"))
    labels: "array[int]" = field(default_factory=lambda: array("i"))
    digests: bytearray = field(default_factory=bytearray)
    text_bytes: "array[int]" = field(default_factory=lambda: array("q"))

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """As they are written to the disk."""
        return {
            "offsets": np.array(self.offsets, np.int64),
            "rows": np.array(self.rows, np.int32),
            "loss_tokens": np.array(self.loss_tokens, np.int32),
            "cut": np.array(self.cut, np.bool_),
            "answer_cut": np.array(self.answer_cut, np.bool_),
            "thoughts_dropped": np.array(self.thoughts_dropped, np.bool_),
            "places": np.array(self.places, np.int32).reshape(-1, 2),
            "labels": np.array(self.labels, np.int32),
            "digests": np.frombuffer(bytes(self.digests), np.uint8).reshape(-1, 16),
            "text_bytes": np.array(self.text_bytes, np.int64),
        }


def read_and_encode(
    sources: Sequence[str], reading: Reading, tokenizer: Tokenizer, max_length: int, options: ChatOptions, seen: Seen
) -> Iterator[tuple[int, Row, list[Example]]]:
    """Yield (number of the source, row, its examples); a block is tokenised while the next one is read."""
    with ThreadPoolExecutor(1) as worker:
        pending: tuple[Block, Future[list[list[Example]]]] | None = None
        for block in _blocks(read_rows(sources, reading, seen)):
            following = block, worker.submit(encode, tokenizer, [row for _, row in block], max_length, options)
            if pending is not None:
                yield from _encoded(sources, *pending)
            pending = following
        if pending is not None:
            yield from _encoded(sources, *pending)


def _encoded(
    sources: Sequence[str], block: Block, result: "Future[list[list[Example]]]"
) -> Iterator[tuple[int, Row, list[Example]]]:
    try:
        encoded = result.result()
    except RowError as error:
        raise DataError(f"{place(sources[block[0][0]], error.line)}: {error.reason}") from None
    for (source, row), examples in zip(block, encoded, strict=True):
        yield source, row, examples


def _blocks(rows: Iterable[tuple[int, Row]]) -> Iterator[Block]:
    """Rows of one file, a few hundred at a time."""
    for _, of_file in itertools.groupby(rows, key=lambda pair: pair[0]):
        block: Block = []
        size = 0
        for source, row in of_file:
            block.append((source, row))
            size += row.text_bytes
            if len(block) >= BLOCK_ROWS or size >= BLOCK_BYTES:
                yield block
                block, size = [], 0
        if block:
            yield block


WRITTEN = 1 << 20
"""Bytes that are written at a time."""


def build(folder: Path, read: Callable[[Seen], Iterable[tuple[int, Row, list[Example]]]]) -> None:
    """Write what `read` yields (number of the source, row, its examples) to a folder, as `store.opened` reads it."""
    seen = Seen()
    index, labels, pairs = _Index(), dict[str, int](), False
    with (folder / "ids.bin").open("wb", WRITTEN) as ids, (folder / "answered.bin").open("wb", WRITTEN) as answered:
        for number, (source, row, examples) in enumerate(read(seen)):
            for example in examples:
                ids.write(example.ids.tobytes())
                answered.write(example.answered.tobytes())
                index.offsets.append(index.offsets[-1] + len(example.ids))
                index.rows.append(number)
                index.loss_tokens.append(example.loss_tokens)
            index.cut.append(any(example.cut for example in examples))
            index.answer_cut.append(any(example.answer_cut for example in examples))
            index.thoughts_dropped.append(any(example.thoughts_dropped for example in examples))
            index.places.extend((source, row.line))
            index.labels.append(-1 if row.label is None else labels.setdefault(row.label, len(labels)))
            index.digests += row.digest
            index.text_bytes.append(row.text_bytes)
            pairs = pairs or row.rejected is not None
    for name, values in index.arrays().items():
        np.save(folder / f"{name}.npy", values)
    unused = {Path(source).name: tuple(sorted(fields)) for source, fields in sorted(seen.unused.items())}
    described = Described(seen.shape, unused, tuple(labels), pairs)
    (folder / "described.json").write_text(json.dumps(asdict(described)), encoding="utf-8")
