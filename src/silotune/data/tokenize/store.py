"""Tokenised rows on disk: built once for a content, memory-mapped by every process that trains on them.

A store in use costs the pages that are being read.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from silotune.data.read.content import kept
from silotune.data.read.reading import Reading
from silotune.data.tokenize.building import Described, build, read_and_encode
from silotune.data.tokenize.mapped import mapped, mapped_raw
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.data.tokenize.tokens import ChatOptions


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
    blocks = functools.partial(read_and_encode, sources, reading, tokenizer, max_length, options)
    depends = max_length, options, _tokenizer_digest(Same(tokenizer)), tokenizer.chat_template
    folder = kept("tokens", sources, reading, depends, lambda folder: build(folder, blocks))
    return opened(folder, max_length, options)


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


def opened(folder: Path, max_length: int, options: ChatOptions) -> Store:
    """A store that lies in a folder."""
    told = json.loads((folder / "described.json").read_text(encoding="utf-8"))
    unused = {name: tuple(fields) for name, fields in told["unused"].items()}
    described = Described(told["shape"], unused, tuple(told["labels"]), told["pairs"])
    arrays = {name: mapped(folder / f"{name}.npy") for name in ARRAYS}
    ids, answered = mapped_raw(folder / "ids.bin", np.int32), mapped_raw(folder / "answered.bin", np.bool_)
    return Store(described, ids, answered, **arrays, max_length=max_length, options=options)
