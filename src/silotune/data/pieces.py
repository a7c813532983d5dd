"""Texts to tokens in memory that does not grow with the text: long ones go to the tokenizer in pieces.

The tokenizers library holds some 200 bytes for each byte of text that it is given at once. So it is given `BATCH`
characters at most, which takes some 50 MB; beyond that a text costs four bytes a token. A longer text is cut at
borders on which its two sides come to the same tokens apart as they do together: between a letter and a blank or a
mark, where the tokenizer's own pre-tokenizer cuts too and nothing changes within `AROUND` characters. Every model of
the library works on each pre-token alone, so the tokens are those of the whole text.

A text in which there is no such border (one word of many megabytes, a tokenizer without a pre-tokenizer) goes to the
tokenizer as it is, and so do all texts with tokenizers outside the library; then memory grows with the text.
"""

import bisect
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PIECE = 1 << 16
"""Characters of a piece at most, where there are borders."""
BATCH = 1 << 18
"""Characters that the tokenizer is given at once."""
AROUND = 64
"""Characters on each side of a border that are looked at; no pre-tokenizer's pattern looks further."""
PLACES = re.compile(r"(?<=[^\W_])(?=[\s,.;:!?、。，！？；：।])")
"""Where most pre-tokenizers cut, whatever stands before and after."""
TRIES = 16
"""Places that are tried in a piece."""


def token_ids(tokenizer: Any, texts: Sequence[str], literal: bool) -> "list[array[int]]":
    """Tokenise many texts, on all cores; `literal` takes special tokens' names for ordinary text."""
    found = [array("i") for _ in texts]
    whole = ((index, piece) for index, text in enumerate(texts) for piece in pieces(tokenizer, text, literal))
    for batch in _batches(whole):
        encoded = _encoded(tokenizer, [piece for _, piece in batch], literal)
        for (index, _), ids in zip(batch, encoded, strict=True):
            found[index] += array("i", ids)
    return found


def _batches(numbered: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    size = 0
    for index, text in numbered:
        if batch and size + len(text) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append((index, text))
        size += len(text)
    if batch:
        yield batch


def _encoded(tokenizer: Any, texts: list[str], literal: bool) -> list[list[int]]:
    if not tokenizer.is_fast:
        return list(tokenizer(texts, add_special_tokens=False, split_special_tokens=literal)["input_ids"])
    with _library(tokenizer, literal) as backend:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


@contextmanager
def _library(tokenizer: Any, literal: bool) -> Iterator[Any]:
    """The tokenizers library's own tokenizer, that cuts nothing and adds nothing."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = literal
    try:
        yield backend
    finally:
        backend.encode_special_tokens = False


# ----------------------------------------------------------------------------------------------- borders


def pieces(tokenizer: Any, text: str, literal: bool) -> Iterator[str]:
    """Cut a text so that the tokens of its pieces, one after another, are its tokens."""
    start, end = 0, PIECE
    while end < len(text):
        border = _border(tokenizer, text, end - PIECE // 2, end, literal)
        if border is None:
            end += PIECE // 2
        else:
            yield text[start:border]
            start, end = border, border + PIECE
    yield text[start:]


def _border(tokenizer: Any, text: str, low: int, high: int, literal: bool) -> int | None:
    """A place between two others where a text can be cut; the last one found."""
    if not tokenizer.is_fast or tokenizer.backend_tokenizer.pre_tokenizer is None:
        return None
    places = [match.start() for match in PLACES.finditer(text, low, high)]
    for place in reversed(places[-TRIES:]):
        if _same_apart(tokenizer, text[max(0, place - AROUND) : place], text[place : place + AROUND], literal):
            return place
    return None


def _same_apart(tokenizer: Any, left: str, right: str, literal: bool) -> bool:
    """Whether two texts are cut into the same pre-tokens, and the same tokens, apart as they are together."""
    backend = tokenizer.backend_tokenizer

    def cut(text: str) -> list[str]:
        written = backend.normalizer.normalize_str(text) if backend.normalizer else text
        return [token for token, _ in backend.pre_tokenizer.pre_tokenize_str(written)]

    if cut(left) + cut(right) != cut(left + right):
        return False
    first, second, together = _encoded(tokenizer, [left, right, left + right], literal)
    return first + second == together


# --------------------------------------------------------------------------------------- parts of a text


def ending(tokenizer: Any, text: str, tokens: int) -> str:
    """The end of a long text, from a border on, with at least so many tokens, found without reading the rest.

    A text of fewer tokens, of one piece, or without borders comes back whole.
    """
    size = PIECE
    while size < len(text):
        start = _border(tokenizer, text, len(text) - size, len(text) - size // 2, literal=True)
        if start is not None and len(token_ids(tokenizer, [text[start:]], literal=True)[0]) >= tokens:
            return text[start:]
        size *= 2
    return text


def without_start(tokenizer: Any, text: str, tokens: int) -> tuple[str, int]:
    """(A text without the characters of its first tokens, how many tokens went).

    What is left is the text's own, from where a token begins a character, and never nothing: however many are to go,
    the last such token stays.
    """
    if not tokenizer.is_fast:
        return _bisected(tokenizer, text, tokens)
    start = gone = at = before = 0
    for piece in pieces(tokenizer, text, literal=True):
        offsets = _offsets(tokenizer, piece)
        end = 0
        for number, (first, last) in enumerate(offsets, before):
            if first >= end:
                start, gone = at + first, number
                if number >= tokens:
                    return text[start:], gone
            end = max(end, last)
        before += len(offsets)
        at += len(piece)
    return text[min(start, len(text) - 1) :], gone


def _offsets(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    with _library(tokenizer, literal=True) as backend:
        found: list[tuple[int, int]] = backend.encode(text, add_special_tokens=False).offsets
    return found


def _bisected(tokenizer: Any, text: str, tokens: int) -> tuple[str, int]:
    """For tokenizers that do not say where their tokens stand."""

    def count(start: int) -> int:
        return len(_encoded(tokenizer, [text[start:]], literal=True)[0])

    whole = count(0)
    start = bisect.bisect_left(range(len(text) - 1), True, key=lambda start: count(start) <= whole - tokens)
    return text[start:], whole - count(start)
