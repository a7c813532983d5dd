"""Text in which a row's own words name special tokens, tokenised so that those words stay words.

A row may say `<|im_end|>`, in a question about chat templates or to end a turn by stealth. `apply_chat_template` would
make the token of it. Here only what the template writes itself becomes special tokens; what a row says is spelled out
in ordinary ones. Everything else is tokenised in the whole, as always.

How: the names in a row are hidden behind as many private characters before the template sees them. A second tokenizer,
with the same model, knows every special token by another name of as many private characters. It is given the text
with its template's names replaced by those and the rows' own names put back, for which it knows no token.
"""

import functools
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from silotune.data.read.rows import Turn
from silotune.data.tokenize.chat_template import ChatTemplate, any_of
from silotune.data.tokenize.rendering import control_tokens
from silotune.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

HIDDEN, STAND_IN = 0x100000, 0x108000
"""Where the private characters begin: of names in rows, and of special tokens. Each has 32,768 of them."""


@dataclass(frozen=True)
class Spelling:
    """What one tokenizer needs to keep rows' words words."""

    names: tuple[str, ...]
    pattern: re.Pattern[str]
    """Finds the names."""
    backend: "Backend"
    """The second tokenizer, of the tokenizers library."""
    original: NDArray[np.int64]
    """(vocabulary of the second tokenizer,): the token of the first one for each of the second."""
    special: frozenset[int]
    """Special tokens of the first, but the one for what it does not know."""
    counted: frozenset[str]
    """Their names."""

    def hide(self, text: str) -> str:
        """Hide the names of special tokens.

        Raises:
            DataError: the text has characters that names are hidden behind.
        """
        if any(ord(letter) >= HIDDEN for letter in text):
            raise DataError(
                "the text names one of the model's special tokens, and has characters of Unicode's last private plane "
                "beside it. Remove one of the two, or leave the row out."
            )
        return self._exchanged(text, HIDDEN)

    def shown(self, text: str) -> str:
        """The inverse of `hide`."""

        def name(found: re.Match[str]) -> str:
            hidden = self.names[ord(found[1]) - HIDDEN]
            return hidden * (len(found[0]) // len(hidden))  # it may stand there several times

        return re.sub(f"([{chr(HIDDEN)}-{chr(STAND_IN - 1)}])\\1*", name, text)

    def prepared(self, text: str) -> str:
        """A rendering with hidden names, as the second tokenizer is to be given it: of the same length."""
        return self.shown(self._exchanged(text, STAND_IN))

    def _exchanged(self, text: str, start: int) -> str:
        numbers = {name: number for number, name in enumerate(self.names)}
        return self.pattern.sub(lambda found: chr(start + numbers[found[0]]) * len(found[0]), text)

    def ids(self, found: list[int], text: str) -> list[int]:
        """Tokens of the first tokenizer, given those of the second for a prepared text.

        Raises:
            DataError: the model makes a special token of ordinary text.
        """
        ids: list[int] = self.original[found].tolist()
        if sum(token in self.special for token in ids) != self._written(text):
            raise DataError(
                "the text names one of the model's special tokens, and the tokenizer cannot spell it otherwise. Leave "
                "the row out, or write the name in another way."
            )
        return ids

    def _written(self, text: str) -> int:
        """How many special tokens a template has written into a prepared text."""
        stand_ins = {chr(STAND_IN + number) * len(name): name for number, name in enumerate(self.names)}
        return sum(text.count(stand_in) for stand_in, name in stand_ins.items() if name in self.counted)


def hidden_turn(spelling: Spelling, turn: Turn) -> Turn:
    """A turn with the names in all its texts hidden."""

    def hidden(text: str | None) -> str | None:
        return text and spelling.hide(text)

    return replace(
        turn,
        content=spelling.hide(turn.content),
        reasoning=hidden(turn.reasoning),
        tool_calls=hidden(turn.tool_calls),
        name=hidden(turn.name),
        tool_call_id=hidden(turn.tool_call_id),
    )


@functools.lru_cache(maxsize=4)
def spelling_of(template: ChatTemplate) -> Spelling:
    """How a template's tokenizer spells; made when a row first needs it, which takes seconds for a large vocabulary.

    Raises:
        DataError: the tokenizer is none of the tokenizers library.
    """
    import tokenizers

    tokenizer = template.tokenizer
    if not tokenizer.is_fast:
        raise DataError(
            "the text names one of the model's special tokens, and its tokenizer cannot be told to spell it. Leave "
            "the row out."
        )
    names = tuple(sorted(control_tokens(template), key=lambda name: (-len(name), name)))
    stand_ins = {name: chr(STAND_IN + number) * len(name) for number, name in enumerate(names)}
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described |= {"post_processor": None, "truncation": None, "padding": None}
    for token in described["added_tokens"]:
        token["content"] = stand_ins.get(token["content"], token["content"])
    backend = tokenizers.Tokenizer.from_str(json.dumps(described))
    by_name = {stand_in: name for name, stand_in in stand_ins.items()}
    original = np.full(backend.get_vocab_size(), -1, np.int64)
    for name, token in backend.get_vocab().items():
        number = tokenizer.backend_tokenizer.token_to_id(by_name.get(name, name))
        assert number is not None, "both have the same vocabulary, but for the names"
        original[token] = number
    counted = frozenset(name for name in names if name != tokenizer.unk_token)
    special = frozenset(tokenizer.convert_tokens_to_ids(sorted(counted)))
    pattern = any_of(names)
    assert pattern is not None, "a text names one of them"
    return Spelling(names, pattern, backend, original, special, counted)
