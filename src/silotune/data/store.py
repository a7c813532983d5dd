"""Tokenised rows on disk: built once for a content, memory-mapped by every process that trains on them.

What is held in memory while a store is built is a block of rows and some 60 bytes a row, however large the files;
a store in use costs the pages that are being read.
"""

import functools
import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from silotune import cache
from silotune.data.files import printable, require_file
from silotune.data.hub import identity
from silotune.data.mapped import mapped, mapped_raw
from silotune.data.readers import place
from silotune.data.reading import Reading, Seen, read_rows
from silotune.data.rows import Row
from silotune.data.tokenizer import Tokenizer
from silotune.data.tokens import ChatOptions, Example, RowError, encode
from silotune.errors import DataError
from silotune.settings import HUB

FORMAT = 3
"""Changes when the same content would be read, dealt out or looked through to another result."""
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


@dataclass(frozen=True)
class Store:
    """Rows in tokens."""

    described: Described
    ids: NDArray[np.int32]
    """The token ids of all examples, one after another."""
    answered: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    """(examples + 1,): where each example begins in `ids`."""
    rows: NDArray[np.int32]
    """(examples,): the row of each, counted from 0; a long plain text has several examples, a lost row none."""
    loss_tokens: NDArray[np.int32]
    """(examples,)"""
    cut: NDArray[np.bool_]
    """(rows,): shortened in the user's text, or by early exchanges."""
    answer_cut: NDArray[np.bool_]
    """(rows,): the answer lost its end."""
    thoughts_dropped: NDArray[np.bool_]
    """(rows,): the template leaves out what the assistant thought before an answer."""
    places: NDArray[np.int32]
    """(rows, 2): number of the file, and of the line in it."""
    labels: NDArray[np.int32]
    """(rows,): number of the label, -1 for none."""
    digests: NDArray[np.uint8]
    """(rows, 16): rows of one digest say the same, white space apart."""
    text_bytes: NDArray[np.int64]
    """(rows,)"""
    max_length: int
    """Tokens of an example at most."""
    options: ChatOptions
    """How conversations became tokens."""

    @property
    def size(self) -> int:
        """Rows, lost ones too."""
        return len(self.cut)


ARRAYS = ("offsets", "rows", "loss_tokens", "cut", "answer_cut", "thoughts_dropped", "places", "labels", "digests",
          "text_bytes")  # fmt: skip


def open_store(
    sources: Sequence[str],
    reading: Reading,
    tokenizer: Tokenizer,
    max_length: int,
    options: ChatOptions = ChatOptions(),  # noqa: B008
) -> Store:
    """The tokenised rows of files, from the cache if files, tokenizer and settings are what they were.

    Raises:
        DataError: a row cannot be used; nothing is kept then.
    """
    blocks = functools.partial(_read_and_encode, sources, reading, tokenizer, max_length, options)
    depends = max_length, options, _tokenizer_digest(Same(tokenizer)), tokenizer.chat_template
    folder = kept("tokens", sources, reading, depends, lambda folder: _build(folder, blocks))
    return _opened(folder, max_length, options)


# -------------------------------------------------------------------------------------------- by content


def kept(
    room: str, sources: Sequence[str], reading: Reading, depends: Sequence[object], build: Callable[[Path], None]
) -> Path:
    """The folder of a result, built once for a content of files.

    Args:
        room: the kind of result.
        sources: what is read.
        reading: how.
        depends: whatever else the result depends on.
        build: writes the result to a folder.

    Raises:
        DataError: a file was changed while it was read; nothing is kept then.
    """
    before = [stamp(source) for source in sources]  # before the key: what is hashed must be what is read
    key = content_key(sources, reading, *depends)

    def checked(folder: Path) -> None:
        build(folder)
        for source, was in zip(sources, before, strict=True):
            if stamp(source) != was:
                raise DataError(f"{printable(source)}: the file was changed while it was read. Start again.")

    return cache.kept(room, key, checked)


def content_key(sources: Sequence[str], reading: Reading, *more: object) -> str:
    """A digest of what files hold and how they are read, and of whatever else a result depends on."""
    digest = hashlib.blake2b(digest_size=20)
    for part in (FORMAT, reading, *more):
        digest.update(repr(part).encode() + b"\0")
    for source in sources:
        name = Path(source).name  # its ending says the format
        digest.update(f"{name}\0{_content(source, stamp(source))}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def stamp(source: str) -> tuple[int, ...]:
    """What changes when a file is written."""
    if source.startswith(HUB):
        return ()
    require_file(Path(source))
    status = Path(source).stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@functools.lru_cache(maxsize=4096)
def _content(source: str, _: tuple[int, ...]) -> str:
    if source.startswith(HUB):
        return identity(source)
    try:
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()
    except OSError as error:
        raise DataError(f"{printable(source)}: cannot be read ({error.strerror}).") from None


class Same:
    """A tokenizer as part of a cache key: the same object is the same key."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __hash__(self) -> int:
        return id(self.tokenizer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.tokenizer is self.tokenizer


@functools.lru_cache(maxsize=8)
def _tokenizer_digest(same: Same) -> str:
    tokenizer = same.tokenizer
    described: list[object] = [
        type(tokenizer).__name__,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.eos_token,
    ]
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        described.append(backend.to_str())
    else:
        described += [sorted(tokenizer.get_vocab().items()), str(tokenizer)]
    return hashlib.blake2b(json.dumps(described).encode(), digest_size=16).hexdigest()


# ------------------------------------------------------------------------------------------------ build


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


def _read_and_encode(
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


def _build(folder: Path, read: Callable[[Seen], Iterable[tuple[int, Row, list[Example]]]]) -> None:
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


def _opened(folder: Path, max_length: int, options: ChatOptions) -> Store:
    told = json.loads((folder / "described.json").read_text(encoding="utf-8"))
    unused = {name: tuple(fields) for name, fields in told["unused"].items()}
    described = Described(told["shape"], unused, tuple(told["labels"]), told["pairs"])
    arrays = {name: mapped(folder / f"{name}.npy") for name in ARRAYS}
    ids, answered = mapped_raw(folder / "ids.bin", np.int32), mapped_raw(folder / "answered.bin", np.bool_)
    return Store(described, ids, answered, **arrays, max_length=max_length, options=options)


# ------------------------------------------------------------------------------------------------ split


@dataclass(frozen=True)
class Split(Sequence[Example]):
    """Some rows of a store, as the examples that training and evaluation take."""

    store: Store
    chosen: NDArray[np.int64]
    """Rows of the store, rising."""

    @functools.cached_property
    def _examples(self) -> NDArray[np.int64]:
        member = np.zeros(self.store.size, np.bool_)
        member[self.chosen] = True
        return np.flatnonzero(member[self.store.rows])

    @functools.cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        offsets = self.store.offsets
        return np.asarray(offsets[self._examples + 1] - offsets[self._examples])

    @property
    def row_of(self) -> NDArray[np.int32]:
        """(examples,): the row of the store that each example is of."""
        return np.asarray(self.store.rows[self._examples])

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = int(self._examples[index])
        start, end = int(self.store.offsets[number]), int(self.store.offsets[number + 1])
        row = self.store.rows[number]
        cut, answer_cut = bool(self.store.cut[row]), bool(self.store.answer_cut[row])
        return Example(self.store.ids[start:end], self.store.answered[start:end], cut, answer_cut)

    @property
    def questions(self) -> NDArray[np.int64]:
        """For each row that has a question, the number of the example with its last answer, rising."""
        row_of = self.row_of
        last = np.flatnonzero(np.append(row_of[1:] != row_of[:-1], True)) if len(row_of) else np.zeros(0, np.int64)
        return np.array([index for index in last.tolist() if self[index].last_answer], np.int64)

    @property
    def rows(self) -> int:
        """Rows, lost ones too."""
        return len(self.chosen)

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return int(self.lengths.sum())

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss, over all examples."""
        return int(self.store.loss_tokens[self._examples].sum())

    @property
    def cut(self) -> int:
        """Rows that were shortened in the user's text, or by early exchanges, to fit."""
        return int(self.store.cut[self.chosen].sum())

    @property
    def shortened(self) -> int:
        """Rows that were shortened in whatever way."""
        return int((self.store.cut[self.chosen] | self.store.answer_cut[self.chosen]).sum())

    @property
    def answer_cut(self) -> int:
        """Rows in which the answer lost its end."""
        return int(self.store.answer_cut[self.chosen].sum())

    @property
    def thoughts_dropped(self) -> int:
        """Rows of which the template leaves out what the assistant thought before an answer."""
        return int(self.store.thoughts_dropped[self.chosen].sum())

    @property
    def lost(self) -> int:
        """Rows of which no token of an answer fits."""
        return self.rows - len(np.unique(self.store.rows[self._examples]))

    @property
    def text_bytes(self) -> int:
        """Bytes of their text in UTF-8."""
        return int(self.store.text_bytes[self.chosen].sum())
