"""What goes from a conversation that is too long, and in what order.

1. The user's texts, and those of tools, lose their start, the longest first, each down to its last token.
2. If that is not enough, whole exchanges (a user turn with all that follows until the next one) go from the front, as
   few as will do, and the texts in what is left are cut anew. The system turn and the last exchange stay.
3. If the last exchange alone is too long, its answer loses its end; that is the caller's to do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from silotune.data.read.rows import Turn
from silotune.data.tokenize.pieces import ending, without_start
from silotune.data.tokenize.tokenizer import Tokenizer

SHORTENED = ("user", "tool")
"""Roles whose texts lose their start."""


@dataclass(frozen=True)
class Draft:
    """A conversation that is being made to fit."""

    whole: tuple[Turn, ...]
    """The exchanges that are kept, uncut."""
    turns: tuple[Turn, ...]
    """What is left of them."""
    users: tuple[int, ...]
    """Turns of the user, and of tools, that can still lose text, in the order in which they do."""
    tries: int = 0
    """How often the first of them has been cut already."""


def draft(turns: Sequence[Turn]) -> Draft:
    """A conversation of which nothing is gone yet."""
    users = [index for index, turn in enumerate(turns) if turn.role in SHORTENED]
    users.sort(key=lambda index: len(turns[index].content), reverse=True)
    return Draft(tuple(turns), tuple(turns), tuple(users))


def endings(tokenizer: Tokenizer, turns: tuple[Turn, ...], tokens: int) -> tuple[Turn, ...]:
    """The turns with no more of a long text that may be shortened than its last `tokens` tokens or some more."""
    found = []
    for turn in turns:
        rest = ending(tokenizer, turn.content, tokens) if turn.role in SHORTENED else turn.content
        found.append(turn if rest is turn.content else replace(turn, content=rest))
    return tuple(found)


def shorter(tokenizer: Tokenizer, now: Draft, tokens: int, ends: Mapping[int, int], max_length: int) -> Draft | None:
    """The next, shorter draft of a conversation that comes to too many tokens; None if nothing more can go.

    Args:
        tokenizer: of the base model.
        now: the draft.
        tokens: that it comes to.
        ends: of answers, by the number of their turn: how many tokens there are up to the answer's end.
        max_length: tokens that it may have.
    """
    if not now.users:
        count = _exchanges_to_drop(now.whole, tokens, ends, max_length)
        return draft(_without_exchanges(now.whole, count)) if count else None
    turns, users, tries = list(now.turns), list(now.users), now.tries
    # What is left of a text may come to more tokens than it was: then a little more goes at the next try.
    excess = tokens - max_length + 2**tries - 1
    while users:
        said = turns[users[0]]
        rest, gone = without_start(tokenizer, said.content, excess)
        turns[users[0]] = replace(said, content=rest)
        excess -= gone
        if excess <= 0:
            break
        users, tries = users[1:], -1  # down to its last token
    return replace(now, turns=tuple(turns), users=tuple(users), tries=tries + 1)


def _exchanges_to_drop(turns: Sequence[Turn], tokens: int, ends: Mapping[int, int], max_length: int) -> int:
    """How many must go at least, if they took the system turn with them; one where that is not known."""
    begins = [index for index, turn in enumerate(turns) if turn.role == "user"]
    for count, following in enumerate(begins[1:], 1):
        upto = ends.get(following - 1)
        if upto is None or tokens - upto <= max_length:
            return count if upto is not None else 1
    return len(begins) - 1


def _without_exchanges(turns: Sequence[Turn], count: int) -> tuple[Turn, ...]:
    begins = [index for index, turn in enumerate(turns) if turn.role == "user"]
    return (*turns[: begins[0]], *turns[begins[count] :])
