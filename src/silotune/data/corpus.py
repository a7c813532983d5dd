"""A silo's own text: read, split and tokenised once in a process."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from silotune.data.rows import Row, read_rows
from silotune.data.seeds import derive
from silotune.data.silos import SiloFiles
from silotune.data.tokens import Split, encode_rows


@dataclass(frozen=True)
class Corpus:
    """What a silo trains on and what it is tested on."""

    train: Split
    test: Split


def read_split(files: SiloFiles, holdout: float, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Return (train rows, test rows).

    Without a test file, the share `holdout` of the training rows (at least one, but never all) is held out, drawn
    from the seed and the silo's name.

    Raises:
        DataError: a file cannot be used.
    """
    rows = read_rows(files.train).rows
    if files.test is not None:
        return rows, read_rows(files.test).rows
    held = min(max(1, round(holdout * len(rows))), len(rows) - 1)
    order = np.random.default_rng(derive(seed, "holdout", files.name)).permutation(len(rows))
    chosen = set(order[:held].tolist())
    train = tuple(row for index, row in enumerate(rows) if index not in chosen)
    return train, tuple(row for index, row in enumerate(rows) if index in chosen)


def load_corpus(files: SiloFiles, tokenizer: Any, max_length: int, holdout: float, seed: int) -> Corpus:
    """Read and tokenise a silo's text; kept for the life of the process, while its files stay as they are."""
    return _load(files, (_stamp(files.train), _stamp(files.test)), _Held(tokenizer), max_length, holdout, seed)


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """What changes when a file is written: its time and size."""
    if path is None or not path.exists():
        return None
    status = path.stat()
    return status.st_mtime_ns, status.st_size


class _Held:
    """A tokenizer as part of a cache key: the same object is the same key."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __hash__(self) -> int:
        return id(self.tokenizer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.tokenizer is self.tokenizer


@functools.lru_cache(maxsize=64)
def _load(files: SiloFiles, _: object, held: _Held, max_length: int, holdout: float, seed: int) -> Corpus:
    train, test = read_split(files, holdout, seed)
    source = str(files.test or files.train)
    return Corpus(
        encode_rows(held.tokenizer, train, max_length, str(files.train)),
        encode_rows(held.tokenizer, test, max_length, source),
    )
