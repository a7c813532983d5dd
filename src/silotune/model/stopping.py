"""Where a model's answers end: the tokens and texts of its template's end of turn, and all that its own files name."""

import copy
from dataclasses import dataclass

from silotune.data.tokenize.chat_template import template_of
from silotune.data.tokenize.rendering import turn_end
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.model.protocols import GenerationSettings


@dataclass(frozen=True)
class Stops:
    """What ends an answer, for whatever program generates it."""

    tokens: tuple[int, ...]
    """The end of turn of the chat template, the tokenizer's end of sequence, and those of the generation settings."""
    texts: tuple[str, ...]
    """The end of turn of a chat template that writes it in words."""


def stops_of(settings: GenerationSettings, tokenizer: Tokenizer) -> Stops:
    """What ends an answer.

    Args:
        settings: transformers' GenerationConfig of the base.
        tokenizer: of the base, as `base.load_tokenizer` gives it.
    """
    end = turn_end(template_of(tokenizer))
    configured = settings.eos_token_id
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    tokens = sorted({int(token) for token in (*end.tokens, tokenizer.eos_token_id, *listed)})
    return Stops(tuple(tokens), (end.stop,) if end.stop else ())


def stopping(settings: GenerationSettings, tokenizer: Tokenizer) -> GenerationSettings:
    """The generation settings of a base, saying all that ends an answer: what belongs beside its tuned model."""
    stops, found = stops_of(settings, tokenizer), copy.deepcopy(settings)
    found.eos_token_id = stops.tokens[0] if len(stops.tokens) == 1 else list(stops.tokens)
    if stops.texts:
        found.stop_strings = [*(found.stop_strings or []), *stops.texts]
    return found
