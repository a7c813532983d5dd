"""A silo's own text: found, read, split and tokenised once for a content."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silotune.data import leaks
from silotune.data.files import printable
from silotune.data.pool import pooled_silos, rows_of
from silotune.data.reading import Reading, read_rows
from silotune.data.rows import Row
from silotune.data.seeds import derive
from silotune.data.silos import SiloConfig, SiloFiles, find_silos, listed_silos
from silotune.data.store import Split, Store, content_key, open_store, stamp
from silotune.errors import DataError
from silotune.settings import DataSettings, SiloSource


def reading_of(data: DataSettings) -> Reading:
    """How a recipe says that rows are to be read."""
    return Reading(tuple(sorted(data.fields.items())), data.text_rows)


def silos_of(data: DataSettings, seed: int) -> tuple[SiloFiles, ...]:
    """The silos of a recipe, sorted by name (those of a pool in its order).

    Raises:
        DataError: there are none, two of one name, or files that cannot be used.
    """
    if data.pool is not None:
        return pooled_silos(data.pool, reading_of(data), seed)
    named = [source for source in data.silos or () if isinstance(source, SiloSource)]
    if named:
        return listed_silos(named)
    return find_silos([str(pattern) for pattern in data.silos or ()])


@dataclass(frozen=True)
class Corpus:
    """What a silo trains on and what it is tested on."""

    train: Split
    test: Split
    leaked: int = 0
    """Test rows that also stand in training text."""
    dropped: int = 0
    """How many of them were left out."""


def load_corpus(silo: SiloConfig, tokenizer: Any, max_length: int, seed: int) -> Corpus:
    """A silo's text in tokens; kept for the life of the process while its files stay as they are.

    Raises:
        DataError: a file or row cannot be used, or there is nothing to train or to test on.
    """
    stamps = tuple(stamp(source) for source in (*silo.files.train, *silo.files.test))
    key = (silo.files, silo.reading, silo.holdout, silo.leaks, silo.drop_leaks)
    return _loaded(_Held(silo, tokenizer), key, stamps, max_length, seed)


class _Held:
    """Arguments that a cache looks past: what they hold is in its other keys, and tokenizers are told by identity."""

    def __init__(self, silo: SiloConfig, tokenizer: Any) -> None:
        self.silo, self.tokenizer = silo, tokenizer

    def __hash__(self) -> int:
        return id(self.tokenizer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.tokenizer is self.tokenizer


@functools.lru_cache(maxsize=64)
def _loaded(held: _Held, _key: object, _stamps: object, max_length: int, seed: int) -> Corpus:
    silo = held.silo
    files = silo.files
    assert silo.holdout is not None, "settled by the job before text is read"
    train = open_store(files.train, silo.reading, held.tokenizer, max_length)
    test = open_store(files.test, silo.reading, held.tokenizer, max_length) if files.test else train
    chosen = chosen_rows(files, train.size, test.size, silo.holdout, seed)
    leaked = leaks.read(silo.leaks, files.name).all if silo.leaks is not None else frozenset()
    kept = chosen.test
    if silo.drop_leaks:
        kept = np.array([row for row in chosen.test.tolist() if row not in leaked], np.int64)
    corpus = Corpus(Split(train, chosen.train), Split(test, kept), len(leaked), len(chosen.test) - len(kept))
    _require_something(files, train, corpus, max_length)
    return corpus


def _require_something(files: SiloFiles, store: Store, corpus: Corpus, max_length: int) -> None:
    shown, tested = printable(files.train[0]), printable((files.test or files.train)[0])
    if store.described.pairs:
        raise DataError(
            f'{shown}: the rows are preference pairs, and training.objective = "sft" learns from one answer a prompt. '
            'To learn from the chosen ones: data.fields = { prompt = "prompt", response = "chosen" }.'
        )
    for split, source in ((corpus.train, shown), (corpus.test, tested)):
        if split.rows and not len(split):
            raise DataError(
                f"{source}: of none of {split.rows} rows does a token of the response fit into "
                f"data.max_length = {max_length}."
            )
    if not corpus.dropped and not corpus.test.rows:
        raise DataError(f"{tested}: silo {printable(files.name)!r} gets no row to test on.")
    if corpus.dropped and not corpus.test.rows:
        raise DataError(
            f"{tested}: all {corpus.dropped} test rows also stand in training text, so data.drop_leaks leaves nothing "
            "to test on."
        )


# ------------------------------------------------------------------------------------------------ split


@dataclass(frozen=True)
class Chosen:
    """Which rows a silo trains on and is tested on: numbers of rows in their sources, rising."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def chosen_rows(files: SiloFiles, train_rows: int, test_rows: int, holdout: float, seed: int) -> Chosen:
    """Split a silo's rows.

    Without a test file, the share `holdout` of the training rows (at least one, but never all) is held out, drawn
    from the seed and the silo's name.

    Raises:
        DataError: a single row, of which nothing can be held out.
    """
    own = rows_of(files, "train", train_rows)
    if files.test:
        return Chosen(own, rows_of(files, "test", test_rows))
    if len(own) < 2:
        raise DataError(f"{printable(files.train[0])}: silo {printable(files.name)!r} has one row and no test file: "
                        "there is nothing to hold out. Give it more rows, or a test file.")  # fmt: skip
    held = min(max(1, round(holdout * len(own))), len(own) - 1)
    order = np.random.default_rng(derive(seed, "holdout", files.name)).permutation(len(own))
    tested = np.zeros(len(own), np.bool_)
    tested[order[:held]] = True
    return Chosen(own[~tested], own[tested])


def silo_rows(files: SiloFiles, reading: Reading, chosen: Chosen, split: str) -> Iterator[tuple[int, Row]]:
    """Yield (number in its sources, row) of a silo's split, streamed."""
    sources = files.test if split == "test" and files.test else files.train
    wanted = chosen.test if split == "test" else chosen.train
    member = np.zeros(int(wanted.max(initial=-1)) + 1, np.bool_)
    member[wanted] = True
    for number, (_, row) in enumerate(read_rows(sources, reading)):
        if number >= len(member):
            return
        if member[number]:
            yield number, row


class _Rows:
    """Rows that are read anew each time they are asked for."""

    def __init__(self, files: SiloFiles, reading: Reading, chosen: Chosen, split: str) -> None:
        self._arguments = files, reading, chosen, split

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        return silo_rows(*self._arguments)


def leaks_of(silos: Sequence[SiloFiles], reading: Reading, holdout: float, seed: int) -> Path:
    """The folder of these silos' leaks: which rows of a test also stand in any of their training texts.

    Raises:
        DataError: a row cannot be used; every row is checked on the way.
    """
    chosen = {files: chosen_rows(files, *counted_rows(files, reading), holdout, seed) for files in silos}
    sources = [source for files in silos for source in (*files.train, *files.test)]
    described = [(files.name, len(files.train), len(files.test), files.part) for files in silos]
    key = content_key(list(dict.fromkeys(sources)), reading, described, holdout, seed)
    texts = {
        files.name: leaks.Text(_Rows(files, reading, rows, "train"), _Rows(files, reading, rows, "test"))
        for files, rows in chosen.items()
    }
    return leaks.kept(key, texts)


def counted_rows(files: SiloFiles, reading: Reading) -> tuple[int, int]:
    """How many rows a silo's sources hold, train and test; every row is checked on the way.

    Raises:
        DataError: a row cannot be used.
    """
    train, test = (_count(sources, reading, tuple(map(stamp, sources))) for sources in (files.train, files.test))
    return train, test


@functools.lru_cache(maxsize=1024)
def _count(sources: tuple[str, ...], reading: Reading, _stamps: object) -> int:
    return sum(1 for _ in read_rows(sources, reading))


def first_test_rows(files: SiloFiles, reading: Reading, chosen: Chosen, count: int) -> Sequence[Row]:
    """The first rows of a silo's test."""
    rows = silo_rows(files, reading, chosen, "test")
    return [row for _, (_, row) in zip(range(count), rows, strict=False)]
