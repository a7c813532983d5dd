"""Conversations as text, with the answers marked: what the model learns from, exactly as its template writes it.

An answer is written by the template twice: as a prompt, up to where the assistant's turn begins, and whole. What the
whole adds to the prompt, up to the end of the turn, is what the model has to say, and carries the loss. Of several
answers, one whose rendering is how a later one's begins is learned there; one that the template writes otherwise
later on (it drops an earlier turn's thoughts, say, or ends the last turn in another way) is learned in a rendering of
its own, as it stands when it is said.

How a turn ends is found from the template, with marked texts in the turns' places: the last token that closes both an
answer at the end and one that a question follows; a closing text, if there is no such token. Where a template writes
neither, the end-of-sequence token is to be added.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from silotune.data.read.rows import Role, Turn
from silotune.data.tokenize.chat_template import ChatTemplate, added_names, any_of, fill, places
from silotune.data.tokenize.pieces import same_start
from silotune.errors import DataError

EDGE = "\x1f"
"""White space that no template writes: where it is gone, the template trims."""
MARKED = re.compile(f"({EDGE}?)mark([0-9]+)of4711({EDGE}?)", re.IGNORECASE)
"""A marked text in a rendering: whether its edges are left, and the number of its turn."""


@dataclass(frozen=True)
class Span:
    """Where an answer stands in a rendering, its end of turn included: characters start .. end - 1."""

    turn: int
    start: int
    end: int


@dataclass(frozen=True)
class Rendering:
    """Some answers of a conversation in the words of its template."""

    text: str
    """The whole of it, also what the template writes after the last answer."""
    spans: tuple[Span, ...]
    """The spans of the answers that are learned from here; the last one is that of the last answer."""
    ended: bool
    """Whether the template writes an end of turn; if not, the end-of-sequence token belongs after the last answer."""
    thoughts_dropped: bool = False
    """Whether the template leaves out what an answer's text says within `<think>` and `</think>`."""


@dataclass(frozen=True)
class _Answer:
    """One answer by itself."""

    turn: int
    text: str
    start: int
    end: int
    ended: bool


def renderings(template: ChatTemplate, turns: Sequence[Turn], tools: str | None = None) -> list[Rendering]:
    """Render a conversation so that each of its learned answers stands in one rendering, the last answer last.

    Raises:
        DataError: the template refuses the conversation, drops a part of it, or rewrites an answer past recognition.
    """
    waiting = [
        _answer(template, turns[: index + 1], tools)
        for index, turn in enumerate(turns)
        if turn.role == "assistant" and turn.learned
    ]
    found = []
    while waiting:
        last = waiting.pop()
        begins = [one.ended and last.text.startswith(one.text[: one.end]) for one in waiting]
        inside = [one for one, fits in zip(waiting, begins, strict=True) if fits]
        waiting = [one for one, fits in zip(waiting, begins, strict=True) if not fits]
        spans = tuple(Span(one.turn, one.start, one.end) for one in (*inside, last))
        dropped = any(_drops_thoughts(turns[span.turn], last.text[span.start : span.end]) for span in spans)
        found.append(Rendering(last.text, spans, last.ended, dropped))
    return found[::-1]


def _answer(template: ChatTemplate, turns: Sequence[Turn], tools: str | None) -> _Answer:
    """The last turn's answer, in what the template writes up to it."""
    before = fill(template, turns[:-1], tools, prompt=True)
    whole = fill(template, turns, tools)
    outline = outline_of(template, tuple(map(kind_of, turns)), _tools_like(template, tools))
    start = len(before) - outline.unsaid if outline.unsaid is not None else -1
    if start < 0 or whole[:start] != before[:start]:
        start = _found(template, turns, tools, whole, outline)
    if whole.endswith(outline.tail):
        end = len(whole) - len(outline.tail) + len(outline.closing)
    else:
        end = _end_at_the_end(template, whole, start)
    return _Answer(len(turns) - 1, whole, start, max(start, end), outline.ended)


def _found(template: ChatTemplate, turns: Sequence[Turn], tools: str | None, whole: str, outline: "Outline") -> int:
    """Where an answer begins whose rendering does not go on from its prompt, because it changes the turns before it.

    Its own words begin where the rendering parts from that of other answers, and stand as far behind the answer's
    beginning as in the outline.
    """
    said, kind = turns[-1], kind_of(turns[-1])
    others = [fill(template, [*turns[:-1], other], tools) for other in kind.variants(len(turns) - 1)]
    own = min(same_start(whole, other) for other in others)
    plain = said.plain and not kind.thinks
    if own < outline.lead or (plain and not whole[own:].lstrip().startswith(said.content.strip())):
        raise DataError(
            "the model's chat template rewrites an answer so that it cannot be found in what the template writes. "
            "Leave the row out, or take another base."
        )
    return own - outline.lead


def _end_at_the_end(template: ChatTemplate, whole: str, start: int) -> int:
    """Where an answer ends whose closing depends on what it says: with the first of the tokens at the end."""
    names = added_names(template)
    found = names and re.search(rf"({names.pattern})(\s|{names.pattern})*$", whole[start:])
    return start + found.end(1) if found else len(whole.rstrip())


def _drops_thoughts(turn: Turn, written: str) -> bool:
    thoughts, closed, _ = turn.content.partition("</think>")
    thoughts = thoughts.rpartition("<think>")[2].strip() if closed else ""
    apart = (turn.reasoning or "").strip()
    return thoughts not in written or apart not in written


# ---------------------------------------------------------------------------------------------------- outlines


@dataclass(frozen=True)
class Kind:
    """What decides how a turn is written, beside its texts."""

    role: Role
    reasoning: bool = False
    tool_calls: int = 0
    named: bool = False
    thinks: bool = False
    """Whether its content begins with thoughts, up to `</think>`."""

    def marked(self, number: int, variant: int = 0) -> Turn:
        """A turn of this kind with a mark for its content. Variants have nothing of their own in common."""
        name, arguments = (("f", {"a": "b"}), ("gg", {"cc": 1}), ("h", {}))[variant]
        call = {"id": "abcdef123", "type": "function", "function": {"name": name, "arguments": arguments}}
        thought = ("thought", "idea", "why")[variant]
        content = (f"{EDGE}mark{number}of4711{EDGE}", "other", "another")[variant]
        return Turn(
            self.role,
            "" if self.tool_calls else f"<think>\n{thought}\n</think>\n\n{content}" if self.thinks else content,
            reasoning=thought if self.reasoning else None,
            tool_calls=json.dumps([call] * self.tool_calls) if self.tool_calls else None,
            name="f" if self.named else None,
            tool_call_id="abcdef123" if self.named else None,
        )

    def variants(self, number: int) -> list[Turn]:
        """Turns of this kind that say other things than the marked one."""
        return [self.marked(number, variant) for variant in (1, 2)]


def kind_of(turn: Turn) -> Kind:
    """The kind of a turn."""
    calls = len(json.loads(turn.tool_calls)) if turn.tool_calls else 0
    thinks = turn.role == "assistant" and not calls and "</think>" in turn.content
    return Kind(turn.role, bool(turn.reasoning), calls, bool(turn.name or turn.tool_call_id), thinks)


@dataclass(frozen=True)
class Outline:
    """How the template writes the last answer of conversations of these kinds."""

    unsaid: int | None
    """Characters at the end of a prompt that the template does not write before the answer itself; None if it writes
    otherwise what stands before them."""
    tail: str
    """What it writes after the answer."""
    closing: str
    """How the tail begins: with the end of the turn."""
    opening: str = ""
    """What it writes after the prompt and before the answer's own text: an empty thought, say."""

    @property
    def lead(self) -> int:
        """Characters between the beginning of the answer and its own text."""
        return len(self.opening)

    @property
    def ended(self) -> bool:
        """Whether there is an end of the turn."""
        return bool(self.closing.strip())


@functools.lru_cache(maxsize=1024)
def outline_of(template: ChatTemplate, kinds: tuple[Kind, ...], tools: str | None = None) -> Outline:
    """Find out how a template writes conversations of these kinds, the last of which is an answer, with these tools.

    Raises:
        DataError: the template refuses them, or leaves a turn out.
    """
    turns = [kind.marked(number) for number, kind in enumerate(kinds)]
    before = fill(template, turns[:-1], tools, prompt=True)
    whole = fill(template, turns, tools)
    _require_all(template, kinds, whole)
    last = len(kinds) - 1
    others = [fill(template, [*turns[:-1], other], tools) for other in kinds[last].variants(last)]
    own = min(same_start(whole, other) for other in others)
    marks = list(MARKED.finditer(whole))
    if kinds[last].tool_calls:
        end = len(whole) - len(_common_end([whole, *others]))
    else:
        end = max(mark.end() for mark in marks if int(mark[2]) == last)
    asked = max((mark.end() for mark in MARKED.finditer(before)), default=0)
    said = max((mark.end() for mark in marks if int(mark[2]) < last), default=0)
    same = same_start(before, whole[:own])
    unsaid = len(before) - same if same >= asked else None
    start = same if unsaid is not None else said + same_start(before[asked:], whole[said:own])
    tail = whole[end:]
    following = _following(template, turns, tools, whole[:end])
    if before == fill(template, turns[:-1], tools) and _same_header(template, before[asked:], tail).strip():
        closing = _closing_before_header(template, kinds, tools, tail, following)
    else:
        closing = _closing(template, tail, following)
    return Outline(unsaid, tail, closing, whole[start:own])


_TOOL = json.dumps([{"type": "function", "function": {
    "name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}])  # fmt: skip


def _tools_like(template: ChatTemplate, tools: str | None) -> str | None:
    """Tools that stand for any, where the template takes the form that most do; else these."""
    return _TOOL if tools and places(template).tools else tools


def _require_all(template: ChatTemplate, kinds: Sequence[Kind], whole: str) -> None:
    """Refuse a template that leaves a turn's content out."""
    written = {int(found[2]) for found in MARKED.finditer(whole)}
    for number, kind in enumerate(kinds):
        dropped_on_purpose = kind.role == "system" and template.system == "drop"
        if number not in written and not kind.tool_calls and not dropped_on_purpose:
            raise DataError(
                f"the model's chat template leaves out what turn {number + 1} says, the {kind.role}'s. Leave the row "
                "out, or take a base whose template writes it."
            )


def _common_end(texts: Sequence[str]) -> str:
    first = texts[0][::-1]
    size = min(same_start(first, text[::-1]) for text in texts)
    return texts[0][len(first) - size :]


def _following(template: ChatTemplate, turns: Sequence[Turn], tools: str | None, upto: str) -> str | None:
    """What stands between an answer and a question after it; None if no question may follow.

    Args:
        template: of the base.
        turns: the last of which is the answer.
        tools: that may be called.
        upto: what the template writes up to the end of the answer.
    """
    number = len(turns)
    asked = Kind("tool" if turns[-1].tool_calls else "user").marked(number)
    try:
        whole = fill(template, [*turns, asked], tools)
    except DataError:
        return None
    place = next((found.start() for found in MARKED.finditer(whole) if int(found[2]) == number), None)
    return whole[len(upto) : place] if place is not None and whole.startswith(upto) else None


def _closing(template: ChatTemplate, tail: str, following: str | None) -> str:
    """The end of a turn, out of what is written after an answer.

    Args:
        template: of the base.
        tail: after an answer that nothing follows.
        following: between an answer and a question; None if none may follow.
    """
    both = tail[: same_start(tail, following)] if following is not None else tail
    names = added_names(template)
    if names and (ends := [found.end() for found in names.finditer(both)]):
        return tail[: ends[-1]]
    if names and (first := names.search(tail)):
        return tail[: first.end()]
    return both.rstrip()


def _same_header(template: ChatTemplate, one: str, other: str) -> str:
    """What both texts end with, of which no token's name is cut."""
    common, names = _common_end([one, other]), added_names(template)
    start = len(other) - len(common)
    cut = [found.end() for found in names.finditer(other) if found.start() < start < found.end()] if names else []
    return other[max([start, *cut]) :]


def _closing_before_header(
    template: ChatTemplate, kinds: tuple[Kind, ...], tools: str | None, tail: str, following: str | None
) -> str:
    """Find the closing of a template that always opens the assistant's next turn: the tail ends with its header."""
    names = added_names(template)
    if kinds[-1].tool_calls:
        plain = outline_of(template, (*kinds[:-1], Kind("assistant")), tools).closing
        if plain.strip() and plain in tail:
            return tail[: tail.index(plain) + len(plain)]
    if following is None:
        first = names.search(tail) if names else None
        return tail[: first.end()] if first else ""
    asked = fill(template, [Kind("user").marked(0)])
    mark = MARKED.search(asked)
    header = _same_header(template, asked[: mark.start() if mark else 0], following)
    both = tail[: same_start(tail, following.removesuffix(header))]
    ends = [found.end() for found in names.finditer(both)] if names else []
    return tail[: ends[-1]] if ends else both.rstrip()


# --------------------------------------------------------------------------------------------------- end of turn


@dataclass(frozen=True)
class TurnEnd:
    """How a template ends an assistant's turn, for whoever generates to stop at."""

    text: str
    """As it is written; empty if the template writes no end."""
    tokens: tuple[int, ...]
    """Tokens that end an answer, or a call of tools, by themselves."""
    stop: str
    """A text that ends an answer where no token does; empty otherwise."""


@functools.lru_cache(maxsize=64)
def turn_end(template: ChatTemplate) -> TurnEnd:
    """How a template ends an answer; without any end where it refuses even a question and an answer."""
    asked = (Kind("user"), Kind("assistant"))
    tokens: list[int] = []
    texts: list[str] = []
    for kinds in (asked, (Kind("user"), Kind("assistant", tool_calls=1))):
        try:
            text = outline_of(template, kinds, _TOOL if kinds != asked else None).closing
        except DataError:
            text = ""
        texts.append(text.strip())
        names = added_names(template)
        last = [found[0] for found in names.finditer(text)][-1:] if names else []
        tokens += [int(template.tokenizer.convert_tokens_to_ids(name)) for name in last if text.strip().endswith(name)]
    return TurnEnd(texts[0], tuple(dict.fromkeys(tokens)), "" if tokens else texts[0])


@functools.lru_cache(maxsize=64)
def control_tokens(template: ChatTemplate) -> frozenset[str]:
    """Names of tokens that only the template may write: special ones, and any added one that begins or ends a turn.

    Of the others that stand before an answer, a pair such as `<think>` and `</think>` is the assistant's to write.
    """
    tokenizer = template.tokenizer
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names, found = added_names(template), set[str]()
    try:
        asked = fill(template, [Kind("user").marked(0)], prompt=True)
        outline = outline_of(template, (Kind("user"), Kind("assistant")))
        if names:
            header = max(mark.end() for mark in MARKED.finditer(asked))
            found = {name for name in names.findall(asked[header:] + outline.tail) if not _paired(name, names)}
            found |= {*names.findall(asked[:header]), *names.findall(outline.closing)}
    except DataError:  # it refuses even these; so it will refuse the rows
        pass
    return frozenset({*special, *tokenizer.all_special_tokens, *found})


def _paired(name: str, names: re.Pattern[str]) -> bool:
    """Whether a token's name is a tag of which the other one of its pair is a token too."""
    other = f"<{name[2:]}" if name.startswith("</") else f"</{name[1:]}"
    return name.startswith("<") and names.fullmatch(other) is not None


@functools.lru_cache(maxsize=64)
def naming(template: ChatTemplate) -> re.Pattern[str] | None:
    """Finds the name of a control token."""
    return any_of(control_tokens(template))


def learned(turns: Sequence[Turn], last_only: bool) -> tuple[Turn, ...]:
    """The turns up to the last answer that carries loss, of which no other does if `last_only`."""
    carrying = [index for index, turn in enumerate(turns) if turn.role == "assistant" and turn.learned]
    if not carrying:
        return ()
    kept = turns[: carrying[-1] + 1]
    earlier = [replace(turn, learned=False) if last_only else turn for turn in kept[:-1]]
    return (*earlier, kept[-1])
