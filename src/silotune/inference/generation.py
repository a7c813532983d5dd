"""Text from the base or the tuned model: the training's own chat template, stopped at the end of the turn."""

import inspect
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.errors import InputError, LengthError
from silotune.model import lora
from silotune.model.adapter import AdapterState
from silotune.model.protocols import Cache, TunedModel
from silotune.model.stopping import Stops, stops_of
from silotune.model.targets import longest_input

if TYPE_CHECKING:
    import torch
    from torch import Tensor

COLDEST = 1e-3
"""Below this temperature the likeliest token has all the probability, and logits divided by it may overflow."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_tokens: int = 200
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0 takes the likeliest token each time, and so does anything below 0.001."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability."""
    seed: int = 0
    """Seed of the sampling."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer before them."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: naming the value.
        """
        if self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens}; an answer needs at least 1.")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InputError(f"temperature is {self.temperature}; give a finite number of at least 0.")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; give a share of probability from 0 to 1.")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed is {self.seed}; give a number from 0 to 2^64 - 1.")
        if "" in self.stop:
            raise InputError("stop has an empty text, which would end every answer before it begins.")


Finish = Literal["stop", "length"]
"""Why an answer ended: the model ended its turn or said a stop text; or it was cut, at `max_tokens` or where the model
can read no further."""


@dataclass(frozen=True)
class Piece:
    """What one more token adds to an answer."""

    text: str
    """Often empty: half a character, or what may become a stop text, is held back."""
    tokens: int
    """Drawn so far, the one that ends the answer included."""
    finish: Finish | None = None
    """Why the answer ended; given with the last piece only."""


@dataclass(frozen=True)
class Reply:
    """An answer that is about to be generated."""

    prompt_tokens: int
    pieces: Generator[Piece, None, None]


class Speech:
    """An answer as it grows: tokens go in, text that is sure comes out."""

    def __init__(self, tokenizer: Tokenizer, stops: Stops, sampling: Sampling, most: int) -> None:
        """Nothing is said yet.

        Args:
            tokenizer: of the base.
            stops: what ends an answer.
            sampling: its stop texts end an answer too; none of them is a part of it.
            most: tokens at most, from 1.
        """
        self.said: list[int] = []
        self._tokenizer, self._ends, self._most = tokenizer, frozenset(stops.tokens), most
        self._stop = (*sampling.stop, *stops.texts)
        self._tokens, self._shown = 0, 0

    def add(self, token: int) -> Piece:
        """Take the next token; nothing may follow a piece that has a `finish`."""
        self._tokens += 1
        ended = token in self._ends
        if not ended:
            self.said.append(token)
        text: str = self._tokenizer.decode(self.said, skip_special_tokens=True)
        cut = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=None)
        if ended or cut is not None:
            return self._piece(text[:cut], "stop")
        if self._tokens >= self._most:
            return self._piece(text, "length")
        # A character of several tokens shows as U+FFFD until its last one: hold it back.
        return self._piece("" if text.endswith("\ufffd") else text[: len(text) - self._begun(text)])

    def _begun(self, text: str) -> int:
        """Characters at the end of the text that a stop text begins with."""
        return max(
            (size for stop in self._stop for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )

    def _piece(self, text: str, finish: Finish | None = None) -> Piece:
        piece = Piece(text[self._shown :], self._tokens, finish)
        self._shown = max(self._shown, len(text))
        return piece


def room(tuned: TunedModel, prompt: Sequence[int], sampling: Sampling) -> int:
    """Tokens that an answer to this prompt may have: `max_tokens`, or what the model can read after the prompt.

    Raises:
        LengthError: there is no room for any.
    """
    longest = longest_input(tuned.get_base_model())
    if longest is None:
        return sampling.max_tokens
    if len(prompt) >= longest:
        raise LengthError(
            f"the prompt has {len(prompt)} tokens, and the model reads {longest} with its answer. Shorten the prompt."
        )
    return min(sampling.max_tokens, longest - len(prompt))


def pieces(
    tuned: TunedModel,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    base: bool = False,
    adapter: AdapterState | None = None,
) -> Generator[Piece, None, None]:
    """Yield an answer token by token as it is generated; whoever stops reading stops the model.

    Between two pieces the model is anybody's: nothing of this answer stays switched on or off in it.

    Args:
        tuned: PEFT's model.
        tokenizer: of the base.
        prompt: token ids, as training makes them (`data.tokens.encode_prompt`).
        sampling: how to choose tokens.
        base: switch the adapter off, to hear the base model.
        adapter: speak with this one, whatever lies in the model meanwhile; it stays there. None: with what lies there.

    Raises:
        LengthError: at once, if the prompt leaves no room for an answer.
    """
    stops = stops_of(tuned.generation_config, tokenizer)
    speech = Speech(tokenizer, stops, sampling, room(tuned, prompt, sampling))
    return _pieces(tuned, list(prompt), speech, sampling, base, adapter)


def _pieces(
    tuned: TunedModel, prompt: list[int], speech: Speech, sampling: Sampling, base: bool, adapter: AdapterState | None
) -> Generator[Piece, None, None]:
    import torch

    generator = torch.Generator().manual_seed(sampling.seed)
    step = _stepper(tuned, prompt)
    while True:
        if adapter is not None and not base:
            lora.put(tuned, adapter)
        with tuned.disable_adapter() if base else nullcontext(), torch.inference_mode():
            token = _choose(step(speech.said), sampling, generator)
        piece = speech.add(token)
        yield piece
        if piece.finish:
            return


def stream(
    tuned: TunedModel,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    base: bool = False,
    adapter: AdapterState | None = None,
) -> Iterator[str]:
    """Yield the text of an answer as it is generated; see `pieces`."""
    return (piece.text for piece in pieces(tuned, tokenizer, prompt, sampling, base, adapter) if piece.text)


def _stepper(tuned: TunedModel, prompt: list[int]) -> "Callable[[list[int]], Tensor]":
    """A function from what was said so far to float32 logits (vocabulary,) of the next token, on the CPU.

    Each call computes the last token only, with the keys and values that the model returned before. A model that
    returns none (Mamba and XLNet keep their state elsewhere) computes everything anew.
    """
    import torch

    accepts = inspect.signature(tuned.get_base_model().forward).parameters
    options: dict[str, object] = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}
    cached = "past_key_values" in accepts
    cache: Cache | None = None

    def step(said: list[int]) -> "Tensor":
        nonlocal cache
        ids = torch.tensor([said[-1:] if cache is not None else prompt + said], device=tuned.device)
        kept: dict[str, object] = {"past_key_values": cache, "use_cache": True} if cached else {}
        output = tuned(input_ids=ids, **kept, **options)
        cache = output.past_key_values if cached else None
        return output.logits[0, -1].float().cpu()

    return step


def _choose(logits: "Tensor", sampling: Sampling, generator: "torch.Generator") -> int:
    import torch

    if sampling.temperature < COLDEST:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    ordered, indices = probabilities.sort(descending=True)
    kept = ordered.cumsum(0) - ordered < sampling.top_p
    kept[0] = True
    return int(indices[torch.multinomial(ordered * kept, 1, generator=generator)])


def answer(
    tuned: TunedModel, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling, base: bool = False
) -> str:
    """The whole answer at once; see `stream`."""
    return "".join(stream(tuned, tokenizer, prompt, sampling, base)).strip()
