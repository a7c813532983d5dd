"""Conversations and texts to tokens: one function for training, evaluation and generation.

A conversation is written with the model's chat template and cut at the borders of the assistant's answers. Each
piece is tokenised apart, so the tokens before an answer are the very tokens that generation starts from. What stands
in a row is text, always: the name of a special token in it is spelled out in ordinary tokens, so that no row can end
a turn, or begin one, by what it says.
"""

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silotune.data.cutting import draft, endings, shorter
from silotune.data.pieces import token_ids
from silotune.data.rows import Row, Turn
from silotune.data.template import parted_of, pieces_of
from silotune.errors import DataError


@dataclass(frozen=True)
class Example:
    """A row, or a window of a plain text, in tokens."""

    ids: NDArray[np.int32]
    answered: NDArray[np.bool_]
    """For each token, whether it belongs to an answer (its end-of-turn token included): those carry the loss."""
    cut: bool = False
    """Whether text of the user or early exchanges were left out to fit the greatest length."""
    answer_cut: bool = False
    """Whether the answer lost its end, and with it its end-of-turn token."""

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss. The first token of all is never predicted."""
        return int(np.count_nonzero(self.answered[1:]))

    @property
    def last_answer(self) -> int:
        """Where the last answer begins: all before it is the question. 0 for a plain text, which has none."""
        before = np.flatnonzero(~self.answered)
        return int(before[-1]) + 1 if len(before) else 0


@dataclass(frozen=True)
class Segment:
    """Text that is tokenised apart."""

    text: str
    answer: bool
    literal: bool = False
    """Whether special tokens' names in it are ordinary text."""
    closes: bool = False
    """Whether an answer ends with it."""


def encode_prompt(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    """Tokens up to where the assistant's next answer begins: what generation starts from."""
    (tokens,) = _tokens(tokenizer, [_segments(tokenizer, turns, True, _special_names(tokenizer))])
    return tokens[0].tolist()


def encode(tokenizer: Any, rows: Sequence[Row], max_length: int) -> list[list[Example]]:
    """Turn rows into tokens, with marks on the answers: for each row its examples.

    A conversation is one example. If it is longer than `max_length`, its user turns lose text from their start, the
    longest first; where that is not enough, whole early exchanges go, never the system turn and the last exchange;
    only where that one alone is too long does its answer lose its end. Where no token of an answer is left the row
    has no example.

    A plain text ends with the end-of-sequence token, begins with the model's first token if the tokenizer writes
    one, and carries loss everywhere. A long one becomes windows of `max_length` tokens, each beginning with the last
    token of the one before: every token but the first of all is predicted once.

    Raises:
        DataError: naming the line; the template refuses the roles, or rewrites what is said.
    """
    texts = [index for index, row in enumerate(rows) if row.text is not None]
    chats = [index for index, row in enumerate(rows) if row.text is None]
    found: list[list[Example]] = [[] for _ in rows]
    for index, windows in zip(
        texts, _encode_texts(tokenizer, [rows[i].text or "" for i in texts], max_length), strict=True
    ):
        found[index] = windows
    for index, example in zip(chats, _encode_chats(tokenizer, [rows[i] for i in chats], max_length), strict=True):
        found[index] = [example] if example.loss_tokens else []
    return found


def conversation_texts(tokenizer: Any, rows: Sequence[Row]) -> list[str]:
    """The pieces of text that `encode` tokenises for conversations, in order."""
    special = _special_names(tokenizer)
    return [segment.text for row in rows for segment in _segments(tokenizer, row.turns, False, special)]


# ----------------------------------------------------------------------------------------- conversations


def _encode_chats(tokenizer: Any, rows: Sequence[Row], max_length: int) -> list[Example]:
    # An ending of so many tokens is too long itself, so it is cut as its whole text would be.
    drafts = [draft(endings(tokenizer, row.turns, max_length + 1)) for row in rows]
    examples = _examples(tokenizer, rows, [now.turns for now in drafts])
    for index, row in enumerate(rows):
        if drafts[index].turns != row.turns and len(examples[index].ids) <= max_length:  # the template drops text
            drafts[index] = draft(row.turns)
            (examples[index],) = _examples(tokenizer, [row], [row.turns])
    long = [index for index, example in enumerate(examples) if len(example.ids) > max_length]
    while long:
        following = {i: shorter(tokenizer, drafts[i], examples[i].answered, max_length) for i in long}
        again = [index for index, now in following.items() if now is not None]
        drafts = [following.get(index) or now for index, now in enumerate(drafts)]
        written = _examples(tokenizer, [rows[index] for index in again], [drafts[index].turns for index in again])
        for index, example in zip(again, written, strict=True):
            examples[index] = example
        long = [index for index in again if len(examples[index].ids) > max_length]
    return [
        Example(
            example.ids[:max_length],
            example.answered[:max_length],
            cut=now.turns != row.turns,
            answer_cut=len(example.ids) > max_length,
        )
        for row, now, example in zip(rows, drafts, examples, strict=True)
    ]


def _examples(tokenizer: Any, rows: Sequence[Row], turns: Sequence[Sequence[Turn]]) -> list[Example]:
    special = _special_names(tokenizer)
    plans = []
    for row, said in zip(rows, turns, strict=True):
        try:
            plans.append(_segments(tokenizer, said, False, special))
        except DataError as error:
            raise DataError(f"line {row.line}: {error}") from None
    return [
        Example(np.array(ids, np.int32), np.array(answered, np.bool_)) for ids, answered in _tokens(tokenizer, plans)
    ]


# --------------------------------------------------------------------------------------------- segments


def _segments(tokenizer: Any, turns: Sequence[Turn], open_end: bool, special: re.Pattern[str] | None) -> list[Segment]:
    said = [turn.content for turn in turns]
    if special is None or not any(special.search(content) for content in said):
        return [
            Segment("".join(part.text(said) for part in piece.parts), piece.answer, closes=piece.answer)
            for piece in pieces_of(tokenizer, turns, open_end)
        ]
    return [
        Segment(part.text(said), piece.answer, part.turn is not None, piece.answer and number == len(piece.parts))
        for piece in parted_of(tokenizer, turns, open_end)
        for number, part in enumerate(piece.parts, 1)
    ]


def _special_names(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the name of any special token."""
    names = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names |= set(tokenizer.all_special_tokens)
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))) if names else None


# ----------------------------------------------------------------------------------------------- tokens


def _tokens(tokenizer: Any, plans: Sequence[Sequence[Segment]]) -> "list[tuple[array[int], bytearray]]":
    """For each plan its tokens and their marks. An answer ends with the end-of-turn token, added if none is there."""
    end = int(tokenizer.eos_token_id)
    plain = iter(token_ids(tokenizer, [s.text for plan in plans for s in plan if not s.literal], literal=False))
    literal = iter(token_ids(tokenizer, [s.text for plan in plans for s in plan if s.literal], literal=True))
    found = []
    for plan in plans:
        ids = array("i")
        answered = bytearray()
        for segment in plan:
            tokens = next(literal if segment.literal else plain)
            if segment.closes and (segment.literal or not tokens or tokens[-1] != end):
                tokens.append(end)
            ids += tokens
            answered += bytes([segment.answer]) * len(tokens)
        found.append((ids, answered))
    return found


# ------------------------------------------------------------------------------------------ plain texts


def encode_beginning(tokenizer: Any, text: str) -> list[int]:
    """Tokens of the beginning of a plain text, for generation to go on with."""
    (ids,) = token_ids(tokenizer, [text], literal=True)
    return [*_first(tokenizer), *ids]


def _encode_texts(tokenizer: Any, texts: Sequence[str], max_length: int) -> Iterable[list[Example]]:
    first = _first(tokenizer)
    for ids in token_ids(tokenizer, texts, literal=True):
        tokens = np.concatenate([np.array(part, np.int32) for part in (first, ids, [tokenizer.eos_token_id])])
        starts = range(0, max(1, len(tokens) - 1), max_length - 1)
        windows = [tokens[start : start + max_length] for start in starts]
        yield [Example(window, np.ones(len(window), np.bool_)) for window in windows]


def _first(tokenizer: Any) -> list[int]:
    """The token that every text begins with, if the tokenizer writes one."""
    begins = tokenizer("a")["input_ids"][0]
    return [begins] if begins == tokenizer.bos_token_id else []
