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
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from silotune.data.tokenize.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

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


@dataclass(frozen=True)
class Coder:
    """A tokenizer and how it is to take a text."""

    tokenizer: Tokenizer
    literal: bool = False
    """Take special tokens' names for ordinary text."""
    other: "Backend | None" = None
    """A tokenizer of the tokenizers library in place of the tokenizer's own (`spelling`)."""

    @property
    def backend(self) -> "Backend | None":
        """The tokenizers library's tokenizer; None for a tokenizer outside of it."""
        if self.other is not None:
            return self.other
        return self.tokenizer.backend_tokenizer if self.tokenizer.is_fast else None

    @contextmanager
    def ready(self) -> "Iterator[Backend]":
        """The library's tokenizer, which cuts nothing and adds nothing."""
        backend = self.backend
        assert backend is not None, "only tokenizers of the library are made ready"
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.literal
        try:
            yield backend
        finally:
            backend.encode_special_tokens = False


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], literal: bool) -> "list[array[int]]":
    """Tokenise many texts, on all cores; `literal` takes special tokens' names for ordinary text."""
    coder = Coder(tokenizer, literal)
    found = [array("i") for _ in texts]
    whole = ((index, piece) for index, text in enumerate(texts) for piece in pieces(coder, text))
    for batch in _batches(whole):
        encoded = _encoded(coder, [piece for _, piece in batch])
        for (index, _), ids in zip(batch, encoded, strict=True):
            found[index] += array("i", ids)
    return found


Borders = Sequence[tuple[int, int]]
"""Stretches of a text in characters, start .. end - 1, in rising order."""


def token_ids_with(
    coder: Coder, texts: Sequence[str], borders: Sequence[Borders]
) -> "list[tuple[array[int], list[tuple[int, int]]]]":
    """Tokenise many texts whole, and say where stretches of them stand in the tokens.

    A token belongs to a stretch if it has a character of it, or stands empty where it begins. One from before that only
    takes in the stretch's first blanks (an added token with `rstrip`) does not.

    Args:
        coder: the tokenizer.
        texts: to tokenise.
        borders: of each text, its stretches.

    Returns:
        For each text its tokens, and for each of its stretches the first token and the one after the last.
    """
    if coder.backend is None:
        return [_without_offsets(coder, text, wanted) for text, wanted in zip(texts, borders, strict=True)]
    greedy = {number for number, token in coder.backend.get_added_tokens_decoder().items() if token.rstrip}
    found = [(array("i"), [[-1, -1] for _ in wanted]) for wanted in borders]
    read = [0] * len(texts)
    whole = ((index, piece) for index, text in enumerate(texts) for piece in pieces(coder, text))
    for batch in _batches(whole):
        with coder.ready() as backend:
            encoded = backend.encode_batch([piece for _, piece in batch], add_special_tokens=False)
        for (index, piece), encoding in zip(batch, encoded, strict=True):
            ids, places = found[index]
            _place(encoding, greedy, len(piece), read[index], len(ids), borders[index], places)
            ids.extend(encoding.ids)
            read[index] += len(piece)
    return [(ids, [(first, last) for first, last in places]) for ids, places in found]


def _place(
    encoding: "Encoding", greedy: Set[int], size: int, at: int, before: int, borders: Borders, places: list[list[int]]
) -> None:
    """Find the tokens of those borders that lie in a piece of a text.

    Args:
        encoding: of the piece.
        greedy: tokens that take in the white space after them, which makes them no part of what it belongs to.
        size: of the piece, in characters.
        at: where the piece begins in its text.
        before: tokens of the pieces before.
        borders: of the whole text.
        places: found so far; changed.
    """
    tokens, ids = range(len(encoding)), encoding.ids if greedy else []

    def characters(token: int) -> tuple[int, int]:
        found = encoding.token_to_chars(token)
        assert found is not None, "every token stands for some text: nothing is added"
        return found

    def reaches(token: int, start: int) -> bool:
        first, last = characters(token)
        return first >= start or (last > start and not (greedy and ids[token] in greedy))

    for (start, end), place in zip(borders, places, strict=True):
        if at <= start < at + size or (start == at + size and place[0] < 0):
            place[0] = before + bisect.bisect_left(tokens, True, key=lambda token: reaches(token, start - at))
        if at < end <= at + size:
            place[1] = before + bisect.bisect_left(tokens, True, key=lambda token: characters(token)[0] >= end - at)


def _without_offsets(coder: Coder, text: str, borders: Borders) -> "tuple[array[int], list[tuple[int, int]]]":
    """For tokenizers that do not say where their tokens stand: as far as the tokens of a beginning are the whole's."""
    whole, *beginnings = _encoded(coder, [text, *(text[:at] for pair in borders for at in pair)])
    same = [same_start(whole, beginning) for beginning in beginnings]
    # A token across the end of a stretch belongs to it.
    ends = [count + (count < len(beginning)) for count, beginning in zip(same, beginnings, strict=True)]
    return array("i", whole), list(zip(same[0::2], ends[1::2], strict=True))


def same_start(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


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


def _encoded(coder: Coder, texts: list[str]) -> list[list[int]]:
    if coder.backend is None:
        tokenizer = coder.tokenizer
        return list(tokenizer(texts, add_special_tokens=False, split_special_tokens=coder.literal)["input_ids"])
    with coder.ready() as backend:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


# ----------------------------------------------------------------------------------------------- borders


def pieces(coder: Coder, text: str) -> Iterator[str]:
    """Cut a text so that the tokens of its pieces, one after another, are its tokens."""
    start, end = 0, PIECE
    while end < len(text):
        border = _border(coder, text, end - PIECE // 2, end)
        if border is None:
            end += PIECE // 2
        else:
            yield text[start:border]
            start, end = border, border + PIECE
    yield text[start:]


def _border(coder: Coder, text: str, low: int, high: int) -> int | None:
    """A place between two others where a text can be cut; the last one found."""
    backend = coder.backend
    if backend is None or backend.pre_tokenizer is None:
        return None
    places = [match.start() for match in PLACES.finditer(text, low, high)]
    for place in reversed(places[-TRIES:]):
        if _same_apart(coder, backend, text[max(0, place - AROUND) : place], text[place : place + AROUND]):
            return place
    return None


def _same_apart(coder: Coder, backend: "Backend", left: str, right: str) -> bool:
    """Whether two texts are cut into the same pre-tokens, and the same tokens, apart as they are together."""

    def cut(text: str) -> list[str]:
        written = backend.normalizer.normalize_str(text) if backend.normalizer else text
        return [token for token, _ in backend.pre_tokenizer.pre_tokenize_str(written)]

    if cut(left) + cut(right) != cut(left + right):
        return False
    first, second, together = _encoded(coder, [left, right, left + right])
    return first + second == together


# --------------------------------------------------------------------------------------- parts of a text


def ending(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """The end of a long text, from a border on, with at least so many tokens, found without reading the rest.

    A text of fewer tokens, of one piece, or without borders comes back whole.
    """
    size, coder = PIECE, Coder(tokenizer, literal=True)
    while size < len(text):
        start = _border(coder, text, len(text) - size, len(text) - size // 2)
        if start is not None and len(token_ids(tokenizer, [text[start:]], literal=True)[0]) >= tokens:
            return text[start:]
        size *= 2
    return text


def without_start(tokenizer: Tokenizer, text: str, tokens: int) -> tuple[str, int]:
    """(A text without the characters of its first tokens, how many tokens went).

    What is left is the text's own, from where a token begins a character, and never nothing: however many are to go,
    the last such token stays.
    """
    if not tokenizer.is_fast:
        return _bisected(tokenizer, text, tokens)
    start = gone = at = before = 0
    coder = Coder(tokenizer, literal=True)
    for piece in pieces(coder, text):
        offsets = _offsets(coder, piece)
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


def _offsets(coder: Coder, text: str) -> list[tuple[int, int]]:
    with coder.ready() as backend:
        return backend.encode(text, add_special_tokens=False).offsets


def _bisected(tokenizer: Tokenizer, text: str, tokens: int) -> tuple[str, int]:
    """For tokenizers that do not say where their tokens stand."""

    def count(start: int) -> int:
        return len(_encoded(Coder(tokenizer, literal=True), [text[start:]])[0])

    whole = count(0)
    start = bisect.bisect_left(range(len(text) - 1), True, key=lambda start: count(start) <= whole - tokens)
    return text[start:], whole - count(start)
