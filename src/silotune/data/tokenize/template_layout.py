"""Conversations whose template only writes their contents out, rendered without asking the template each time.

The template is filled in once for all conversations of the same roles, with marks in the contents' places; then only
the contents are put in. What comes out is what `rendering.renderings` gives, which stays the way for all others.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from silotune.data.read.rows import Role, Turn
from silotune.data.tokenize.chat_template import ChatTemplate
from silotune.data.tokenize.rendering import EDGE, MARKED, Kind, Rendering, Span, renderings
from silotune.data.tokenize.template_flow import only_writes


@dataclass(frozen=True)
class _Part:
    """Text that a template writes itself, or the content of a turn."""

    written: str = ""
    turn: int | None = None
    """Number of the turn whose content stands here; None: what the template writes."""
    left: bool = False
    right: bool = False
    """Whether the content loses its white space there."""
    answer: int | None = None
    """Number of the answer that it belongs to, its end of turn included."""

    def text(self, turns: Sequence[Turn]) -> str:
        """The text, given the turns."""
        if self.turn is None:
            return self.written
        said = turns[self.turn].content
        if self.left and self.right:
            return said.strip()
        return said.lstrip() if self.left else said.rstrip() if self.right else said


@dataclass(frozen=True)
class _Layout:
    """A rendering with places for the contents."""

    parts: tuple[_Part, ...]
    ended: bool

    def filled(self, turns: Sequence[Turn]) -> Rendering:
        """The rendering of a conversation."""
        texts = [part.text(turns) for part in self.parts]
        borders: dict[int, tuple[int, int]] = {}
        at = 0
        for part, text in zip(self.parts, texts, strict=True):
            if part.answer is not None:
                borders[part.answer] = borders.get(part.answer, (at, at))[0], at + len(text)
            at += len(text)
        spans = tuple(Span(turn, start, end) for turn, (start, end) in borders.items())
        return Rendering("".join(texts), spans, self.ended)


def rendered(template: ChatTemplate, turns: Sequence[Turn], tools: str | None = None) -> list[Rendering]:
    """As `rendering.renderings`, by the quick way where there is one.

    Raises:
        DataError: as there.
    """
    blank = any(not turn.content.strip() for turn in turns)  # trimmed together with what it stands beside
    if tools is None and not blank and all(turn.plain for turn in turns) and only_writes(template.text):
        described = tuple((turn.role, turn.learned) for turn in turns)
        return [layout.filled(turns) for layout in _layouts(template, described)]
    return renderings(template, turns, tools)


@functools.lru_cache(maxsize=1024)
def _layouts(template: ChatTemplate, described: tuple[tuple[Role, bool], ...]) -> tuple[_Layout, ...]:
    turns = [Turn(role, Kind(role).marked(number).content, learned)
             for number, (role, learned) in enumerate(described)]  # fmt: skip
    return tuple(_Layout(_parts(one), one.ended) for one in renderings(template, turns))


def _parts(rendering: Rendering) -> tuple[_Part, ...]:
    """Cut a marked rendering at its marks and at the borders of its answers."""
    parts: list[_Part] = []
    borders = sorted({0, len(rendering.text), *(at for span in rendering.spans for at in (span.start, span.end))})
    for start, end in itertools.pairwise(borders):
        answer = next((span.turn for span in rendering.spans if span.start <= start < span.end), None)
        at = start
        for mark in MARKED.finditer(rendering.text, start, end):
            parts.append(_Part(rendering.text[at : mark.start()], answer=answer))
            left, right = mark[1] != EDGE, mark[3] != EDGE
            parts.append(_Part(turn=int(mark[2]), left=left, right=right, answer=answer))
            at = mark.end()
        parts.append(_Part(rendering.text[at:end], answer=answer))
    return tuple(part for part in parts if part.written or part.turn is not None)
