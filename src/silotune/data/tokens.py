"""Conversations to tokens: one function for training, evaluation and generation.

A conversation is written with the model's chat template and cut at the borders of the assistant's answers. Each
piece is tokenised apart, so the tokens before an answer are the very tokens that generation starts from.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from silotune.data.rows import Row, Turn
from silotune.errors import DataError


@dataclass(frozen=True)
class Example:
    """A row in tokens."""

    ids: tuple[int, ...]
    answered: tuple[bool, ...]
    """For each token, whether it belongs to an answer (its end-of-turn token included): those carry the loss."""
    cut: bool = False
    """Whether text was left out to fit the greatest length."""

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss. The first token of all is never predicted."""
        return sum(self.answered[1:])


def encode_prompt(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    """Tokens up to where the assistant's next answer begins: what generation starts from."""
    return [token for piece in _pieces(tokenizer, turns, open_end=True) for token in _piece_ids(tokenizer, *piece)]


def encode(tokenizer: Any, row: Row, max_length: int) -> Example:
    """Turn a row into tokens, with marks on the answers.

    A row longer than `max_length` keeps its answers and loses text from the start of its longest user turn; where
    that is not enough, the last answer loses its end.

    Raises:
        DataError: the template refuses the roles, or nothing of the answer would be left.
    """
    example = _encode(tokenizer, row.turns)
    if len(example.ids) <= max_length:
        return example
    shorter = _encode(tokenizer, _shortened(tokenizer, row.turns, len(example.ids) - max_length))
    ids, answered = shorter.ids[:max_length], shorter.answered[:max_length]
    if not any(answered[1:]):
        raise DataError(f"line {row.line}: no token of the answer fits into max_length = {max_length}.")
    return Example(ids, answered, cut=True)


def _encode(tokenizer: Any, turns: Sequence[Turn]) -> Example:
    ids: list[int] = []
    answered: list[bool] = []
    for piece, is_answer in _pieces(tokenizer, turns, open_end=False):
        tokens = _piece_ids(tokenizer, piece, is_answer)
        ids += tokens
        answered += [is_answer] * len(tokens)
    return Example(tuple(ids), tuple(answered))


def _piece_ids(tokenizer: Any, piece: str, is_answer: bool) -> list[int]:
    """Tokens of a piece; an answer ends with the end-of-turn token, which is added if the template writes none."""
    ids, end = _ids(tokenizer, piece), int(tokenizer.eos_token_id)
    return [*ids, end] if is_answer and ids[-1:] != [end] else ids


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
    import jinja2

    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except jinja2.TemplateError as error:
        raise DataError(f"the model's chat template refuses these roles ({error}).") from None
    return text


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _shortened(tokenizer: Any, turns: Sequence[Turn], excess: int) -> list[Turn]:
    """Drop at least `excess` tokens from the start of the longest user turn, as far as it has them."""
    users = [index for index, turn in enumerate(turns) if turn.role == "user"]
    longest = max(users, key=lambda index: len(turns[index].content))
    ids = _ids(tokenizer, turns[longest].content)
    # Two tokens more than needed: the cut may fall inside a character or a merge and encode longer again.
    kept = ids[min(excess + 2, len(ids) - 1) :]
    text = tokenizer.decode(kept).replace("\ufffd", "").strip() or "..."
    return [Turn("user", text) if index == longest else turn for index, turn in enumerate(turns)]


@dataclass(frozen=True)
class Split:
    """A silo's rows in tokens, and what was counted on the way."""

    examples: tuple[Example, ...]
    text_bytes: int

    @functools.cached_property
    def loss_tokens(self) -> int:
        """Tokens that carry loss, over all rows."""
        return sum(example.loss_tokens for example in self.examples)

    @functools.cached_property
    def cut(self) -> int:
        """Rows that were shortened to fit."""
        return sum(example.cut for example in self.examples)


def encode_rows(tokenizer: Any, rows: Sequence[Row], max_length: int, source: str) -> Split:
    """Turn rows into tokens; `source` names their file in messages.

    Raises:
        DataError: with file and line.
    """
    examples = []
    for row in rows:
        try:
            examples.append(encode(tokenizer, row, max_length))
        except DataError as error:
            raise DataError(f"{source}:{row.line}: {str(error).removeprefix(f'line {row.line}: ')}") from None
    return Split(tuple(examples), sum(row.text_bytes for row in rows))
