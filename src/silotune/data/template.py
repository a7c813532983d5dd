"""Conversations to text with a model's chat template, cut at the borders of the assistant's answers."""

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from silotune.data.rows import Role, Turn
from silotune.data.template_flow import only_writes
from silotune.errors import DataError

TODAY = datetime(2024, 7, 26)
"""The date that every chat template is told, whatever the day, in training, evaluation and generation.

The same text gives the same tokens on any day, also in a run that goes on after midnight and at silos far apart. It
is the date that the templates of Llama 3 write where they are told none.
"""
ROLES_SHOWN = 6
"""Of a conversation that a template refuses."""
EDGE = "\x1f"
"""White space that no template writes: where it is gone, the template trims."""


@dataclass(frozen=True)
class Part:
    """Text that a template writes itself, or the content of a turn."""

    written: str = ""
    turn: int | None = None
    """Number of the turn whose content stands here; None: what the template writes."""
    trimmed: bool = False
    """Whether the content loses its outer white space."""

    def text(self, said: Sequence[str]) -> str:
        """The text, given the contents of all turns."""
        if self.turn is None:
            return self.written
        return said[self.turn].strip() if self.trimmed else said[self.turn]


@dataclass(frozen=True)
class Piece:
    """What stands between two borders of answers."""

    parts: tuple[Part, ...]
    answer: bool
    """Whether it is an answer, up to its end-of-turn token."""


def pieces_of(tokenizer: Any, turns: Sequence[Turn], open_end: bool) -> Sequence[Piece]:
    """A conversation as its template writes it, in pieces.

    A template that only writes the contents out is filled in once for all conversations of the same roles.

    Raises:
        DataError: the template refuses the roles, or rewrites what is said.
    """
    template = tokenizer.get_chat_template()
    if only_writes(template):
        layout = _layout(_Template(tokenizer, template), tuple(turn.role for turn in turns), open_end)
        if layout is not None:
            return layout
    return [Piece((Part(text),), answer) for text, answer in _cut(tokenizer, turns, open_end)]


def parted_of(tokenizer: Any, turns: Sequence[Turn], open_end: bool) -> Sequence[Piece]:
    """The same, in which what the template writes itself is known apart from what is said.

    Raises:
        DataError: as above, or the two cannot be told apart.
    """
    template = tokenizer.get_chat_template()
    roles = tuple(turn.role for turn in turns)
    layout = _layout(_Template(tokenizer, template), roles, open_end)
    if layout is None or not only_writes(template):
        written = fill(tokenizer, turns, open_end)
        said = [turn.content for turn in turns]
        if layout is None or not written.startswith(
            "".join(part.text(said) for piece in layout for part in piece.parts)
        ):
            raise DataError(
                "the text names one of the model's special tokens, and the model's chat template rewrites the text, "
                "so that the two cannot be told apart. Leave the row out, or take another base."
            )
    return layout


# ----------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class _Template:
    """A tokenizer and its template, as a key: the same object is the same key."""

    tokenizer: Any
    text: str

    def __hash__(self) -> int:
        return hash((id(self.tokenizer), self.text))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Template) and (other.tokenizer is self.tokenizer and other.text == self.text)


@functools.lru_cache(maxsize=512)
def _layout(template: _Template, roles: tuple[Role, ...], open_end: bool) -> tuple[Piece, ...] | None:
    """What the template makes of conversations of these roles, with places for the contents.

    None: with marks in the contents' places it trims one of them on one side only.
    """
    digest = hashlib.blake2b(template.text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    marks = {f"turn{number}of{digest}end": number for number in range(len(roles))}
    turns = [Turn(role, f"{EDGE}{mark}{EDGE}") for role, mark in zip(roles, marks, strict=True)]
    find = re.compile(f"({EDGE}?(?:{'|'.join(marks)}){EDGE}?)")
    pieces = []
    for text, answer in _cut(template.tokenizer, turns, open_end):
        parts = []
        for part in filter(None, find.split(text)):
            turn = marks.get(part.strip(EDGE))
            if turn is None:
                parts.append(Part(part))
            elif part.startswith(EDGE) != part.endswith(EDGE):
                return None
            else:
                parts.append(Part(turn=turn, trimmed=not part.startswith(EDGE)))
        pieces.append(Piece(tuple(parts), answer))
    return tuple(pieces)


def _cut(tokenizer: Any, turns: Sequence[Turn], open_end: bool) -> list[tuple[str, bool]]:
    """Cut the templated text into (text, is an answer) pieces; answers end with their end-of-turn token."""
    pieces: list[tuple[str, bool]] = []
    done = ""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = fill(tokenizer, turns[:index], True)
        after = fill(tokenizer, turns[: index + 1], False)
        if not (before.startswith(done) and after.startswith(before)):
            raise DataError("the model's chat template rewrites earlier turns, so answers cannot be marked in it.")
        answer = after[len(before) :]
        end = answer.rfind(tokenizer.eos_token)
        if end >= 0:  # what the template writes after the end of a turn belongs to the next one
            answer = answer[: end + len(tokenizer.eos_token)]
        pieces += [(before[len(done) :], False), (answer, True)]
        done = before + answer
    if open_end:
        whole = fill(tokenizer, turns, True)
        pieces.append((whole[len(done) :], False))
    return pieces


# ------------------------------------------------------------------------------------------------- fill


def fill(tokenizer: Any, turns: Sequence[Turn], prompt: bool) -> str:
    """A conversation as its template writes it; `prompt` opens the assistant's next turn.

    Raises:
        DataError: the template refuses it.
    """
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            chat_template=dated(tokenizer.get_chat_template()),
            tokenize=False,
            add_generation_prompt=prompt,
            date_string=TODAY.strftime("%d %b %Y"),
        )
    except Exception:  # its words may be the row's: a template can quote what it is given, and a server choose it
        raise DataError(f"the model's chat template refuses a conversation of {_order(turns)}.") from None
    return text


def _order(turns: Sequence[Turn]) -> str:
    roles = [turn.role for turn in turns]
    return ", ".join(roles[:ROLES_SHOWN]) + (
        f" and {len(roles) - ROLES_SHOWN} more" if len(roles) > ROLES_SHOWN else ""
    )


@functools.lru_cache(maxsize=64)
def dated(template: str) -> str:
    """A chat template in which `strftime_now` answers with `TODAY`.

    As a macro, for transformers hands a template no functions: each letter of a format is replaced by what it means.
    The line's end belongs to it: the template itself must begin a line, as it does alone.
    """
    if "strftime_now" not in template:
        return template
    codes = [sign + letter for sign in ("%", "%-") for letter in "aAwdebBmyYHIpMSfjUWcxXGuVF"]
    filled = "".join(f"|replace({code!r}, {TODAY.strftime(code)!r})" for code in codes)
    return "{% macro strftime_now(format) %}{{ format" + filled + " }}{% endmacro %}\n" + template
