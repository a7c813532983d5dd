"""Conversations and texts to tokens: one function for training, evaluation and generation.

A conversation is written with the model's chat template and cut at the borders of the assistant's answers. Each
piece is tokenised apart, so the tokens before an answer are the very tokens that generation starts from. What stands
in a row is text, always: the name of a special token in it is spelled out in ordinary tokens, so that no row can end
a turn, or begin one, by what it says.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silotune.data.rows import Row, Turn
from silotune.errors import DataError

ROLES_SHOWN = 6
"""Of a conversation that a template refuses."""


@dataclass(frozen=True)
class Example:
    """A row, or a window of a plain text, in tokens."""

    ids: NDArray[np.int32]
    answered: NDArray[np.bool_]
    """For each token, whether it belongs to an answer (its end-of-turn token included): those carry the loss."""
    cut: bool = False
    """Whether text was left out to fit the greatest length."""

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss. The first token of all is never predicted."""
        return int(np.count_nonzero(self.answered[1:]))


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
    return tokens[0]


def encode(tokenizer: Any, rows: Sequence[Row], max_length: int) -> list[list[Example]]:
    """Turn rows into tokens, with marks on the answers: for each row its examples.

    A conversation is one example. If it is longer than `max_length` it keeps its answers and its system turn, and
    loses text from the start of its user turns, the longest first; where that is not enough, the last answer loses
    its end, and where no token of an answer is left the row has no example.

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
    turns = [row.turns for row in rows]
    examples = _examples(tokenizer, rows, turns)
    cut: set[int] = set()
    done: list[set[int]] = [set() for _ in rows]
    while True:
        long = [index for index, example in enumerate(examples) if len(example.ids) > max_length]
        chosen = {index: turn for index in long if (turn := _longest_user(turns[index], done[index])) is not None}
        cut.update(long)
        if not chosen:
            break
        for index, text in _shortened(tokenizer, turns, chosen, examples, max_length):
            done[index].add(chosen[index])
            turns[index] = tuple(
                Turn(turn.role, text) if number == chosen[index] else turn for number, turn in enumerate(turns[index])
            )
        again = list(chosen)
        shorter = _examples(tokenizer, [rows[index] for index in again], [turns[index] for index in again])
        for index, example in zip(again, shorter, strict=True):
            examples[index] = example
    return [
        Example(example.ids[:max_length], example.answered[:max_length], cut=index in cut)
        for index, example in enumerate(examples)
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


def _longest_user(turns: Sequence[Turn], done: set[int]) -> int | None:
    users = [index for index, turn in enumerate(turns) if turn.role == "user" and index not in done]
    return max(users, key=lambda index: len(turns[index].content), default=None)


def _shortened(
    tokenizer: Any,
    turns: Sequence[Sequence[Turn]],
    chosen: dict[int, int],
    examples: Sequence[Example],
    max_length: int,
) -> Iterable[tuple[int, str]]:
    """For each chosen turn, its text without the tokens at its start that are too many, as far as it has them."""
    contents = [turns[index][turn].content for index, turn in chosen.items()]
    for index, ids in zip(chosen, _ids(tokenizer, contents, literal=True), strict=True):
        # Two tokens more than needed: the cut may fall inside a character or a merge and encode longer again.
        excess = len(examples[index].ids) - max_length + 2
        kept = tokenizer.decode(ids[min(excess, len(ids) - 1) :], clean_up_tokenization_spaces=False)
        yield index, kept.replace("\ufffd", "").strip() or "..."


# --------------------------------------------------------------------------------------------- segments


def _segments(tokenizer: Any, turns: Sequence[Turn], open_end: bool, special: re.Pattern[str] | None) -> list[Segment]:
    if special is None or not any(special.search(turn.content) for turn in turns):
        return [Segment(text, answer, closes=answer) for text, answer in _pieces(tokenizer, turns, open_end)]
    return _literal_segments(tokenizer, turns, open_end)


def _special_names(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the name of any special token."""
    names = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names |= set(tokenizer.all_special_tokens)
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))) if names else None


def _literal_segments(tokenizer: Any, turns: Sequence[Turn], open_end: bool) -> list[Segment]:
    """Segments of a conversation that has names of special tokens in what is said.

    The template is filled with marks in place of the contents, so that what it writes itself is known apart from
    what is said; filled in again, it must be what the template makes of the contents.
    """
    said = [turn.content for turn in turns]
    digest = hashlib.blake2b("\0".join(said).encode(), digest_size=8).hexdigest()
    marks = [f"turn{number}of{digest}end" for number in range(len(turns))]
    marked = [Turn(turn.role, mark) for turn, mark in zip(turns, marks, strict=True)]
    find = re.compile(f"({'|'.join(marks)})")
    segments: list[Segment] = []
    for piece, answer in _pieces(tokenizer, marked, open_end):
        parts = [part for part in find.split(piece) if part]
        for number, part in enumerate(parts, 1):
            literal = part in marks
            text = said[marks.index(part)] if literal else part
            segments.append(Segment(text, answer, literal, closes=answer and number == len(parts)))
    written = _template(tokenizer, turns, open_end)
    plain = "".join(segment.text for segment in segments)
    trimmed = "".join(segment.text.strip() if segment.literal else segment.text for segment in segments)
    if written.startswith(plain):
        return segments
    if written.startswith(trimmed):
        return [Segment(s.text.strip() if s.literal else s.text, s.answer, s.literal, s.closes) for s in segments]
    raise DataError(
        "the text names one of the model's special tokens, and the model's chat template rewrites the text, so that "
        "the two cannot be told apart. Leave the row out, or take another base."
    )


def _pieces(tokenizer: Any, turns: Sequence[Turn], open_end: bool) -> list[tuple[str, bool]]:
    """Cut the templated text into (text, is an answer) pieces; answers end with their end-of-turn token."""
    pieces: list[tuple[str, bool]] = []
    done = ""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = _template(tokenizer, turns[:index], True)
        after = _template(tokenizer, turns[: index + 1], False)
        if not (before.startswith(done) and after.startswith(before)):
            raise DataError("the model's chat template rewrites earlier turns, so answers cannot be marked in it.")
        answer = after[len(before) :]
        end = answer.rfind(tokenizer.eos_token)
        if end >= 0:  # what the template writes after the end of a turn belongs to the next one
            answer = answer[: end + len(tokenizer.eos_token)]
        pieces += [(before[len(done) :], False), (answer, True)]
        done = before + answer
    if open_end:
        whole = _template(tokenizer, turns, True)
        pieces.append((whole[len(done) :], False))
    return pieces


def _template(tokenizer: Any, turns: Sequence[Turn], prompt: bool) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception:  # its words may be the row's: a template can quote what it is given, and a server choose it
        raise DataError(f"the model's chat template refuses a conversation of {_order(turns)}.") from None
    return text


def _order(turns: Sequence[Turn]) -> str:
    roles = [turn.role for turn in turns]
    return ", ".join(roles[:ROLES_SHOWN]) + (
        f" and {len(roles) - ROLES_SHOWN} more" if len(roles) > ROLES_SHOWN else ""
    )


# ----------------------------------------------------------------------------------------------- tokens


def _tokens(tokenizer: Any, plans: Sequence[Sequence[Segment]]) -> list[tuple[list[int], list[bool]]]:
    """For each plan its tokens and their marks. An answer ends with the end-of-turn token, added if none is there."""
    end = int(tokenizer.eos_token_id)
    plain = iter(_ids(tokenizer, [s.text for plan in plans for s in plan if not s.literal], literal=False))
    literal = iter(_ids(tokenizer, [s.text for plan in plans for s in plan if s.literal], literal=True))
    found = []
    for plan in plans:
        ids: list[int] = []
        answered: list[bool] = []
        for segment in plan:
            tokens = next(literal if segment.literal else plain)
            if segment.closes and (segment.literal or tokens[-1:] != [end]):
                tokens = [*tokens, end]
            ids += tokens
            answered += [segment.answer] * len(tokens)
        found.append((ids, answered))
    return found


def _ids(tokenizer: Any, texts: Sequence[str], literal: bool) -> list[list[int]]:
    """Tokenise many texts at once, on all cores; `literal` takes special tokens' names for ordinary text."""
    if not texts:
        return []
    if not tokenizer.is_fast:
        encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=literal)
        return list(encoded["input_ids"])
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = literal
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = False


# ------------------------------------------------------------------------------------------ plain texts


def encode_beginning(tokenizer: Any, text: str) -> list[int]:
    """Tokens of the beginning of a plain text, for generation to go on with."""
    (ids,) = _ids(tokenizer, [text], literal=True)
    return [*_first(tokenizer), *ids]


def _encode_texts(tokenizer: Any, texts: Sequence[str], max_length: int) -> Iterable[list[Example]]:
    first = _first(tokenizer)
    for ids in _ids(tokenizer, texts, literal=True):
        tokens = np.array([*first, *ids, tokenizer.eos_token_id], np.int32)
        starts = range(0, max(1, len(tokens) - 1), max_length - 1)
        windows = [tokens[start : start + max_length] for start in starts]
        yield [Example(window, np.ones(len(window), np.bool_)) for window in windows]


def _first(tokenizer: Any) -> list[int]:
    """The token that every text begins with, if the tokenizer writes one."""
    begins = tokenizer("a")["input_ids"][0]
    return [begins] if begins == tokenizer.bos_token_id else []
