"""Text from the base or the tuned model: the training's own chat template, stopped at the end of the turn."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from silotune.errors import InputError
from silotune.model import lora
from silotune.model.adapter import AdapterState

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
    """Of the sampling."""

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


def stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the tokenizer's end of sequence and those of the model's generation settings."""
    stops = {int(tokenizer.eos_token_id)}
    configured = getattr(model.generation_config, "eos_token_id", None)
    if configured is not None:
        stops.update(configured if isinstance(configured, list) else [configured])
    return stops


def stream(
    tuned: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    base: bool = False,
    adapter: AdapterState | None = None,
) -> Iterator[str]:
    """Yield an answer piece by piece as it is generated.

    Between two pieces the model is anybody's: nothing of this answer stays switched on or off in it.

    Args:
        tuned: PEFT's model.
        tokenizer: of the base.
        prompt: token ids, as training makes them (`data.tokens.encode_prompt`).
        sampling: how to choose tokens.
        base: switch the adapter off, to hear the base model.
        adapter: speak with this one, whatever lies in the model meanwhile; it stays there. None: with what lies there.
    """
    import torch

    generator = torch.Generator().manual_seed(sampling.seed)
    stops = stop_tokens(tuned, tokenizer)
    said: list[int] = []
    shown = ""
    step = _stepper(tuned, list(prompt))
    for _ in range(sampling.max_tokens):
        if adapter is not None and not base:
            lora.put(tuned, adapter)
        with tuned.disable_adapter() if base else nullcontext(), torch.inference_mode():
            token = _choose(step(said), sampling, generator)
        if token in stops:
            break
        said.append(token)
        text = tokenizer.decode(said, skip_special_tokens=True)
        # A character of several tokens shows as U+FFFD until its last one: hold it back.
        if len(text) > len(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(said, skip_special_tokens=True)[len(shown) :]
    if rest:
        yield rest


def _stepper(tuned: Any, prompt: list[int]) -> Callable[[list[int]], Any]:
    """A function from what was said so far to float32 logits (vocabulary,) of the next token, on the CPU.

    Each call computes the last token only, with the keys and values that the model returned before. A model that
    returns none (Mamba and XLNet keep their state elsewhere) computes everything anew.
    """
    import torch

    accepts = inspect.signature(tuned.get_base_model().forward).parameters
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}
    cached = "past_key_values" in accepts
    cache = None

    def step(said: list[int]) -> Any:
        nonlocal cache
        ids = torch.tensor([said[-1:] if cache is not None else prompt + said], device=tuned.device)
        kept = {"past_key_values": cache, "use_cache": True} if cached else {}
        output = tuned(input_ids=ids, **kept, **options)
        cache = output.past_key_values if cached else None
        return output.logits[0, -1].float().cpu()

    return step


def _choose(logits: Any, sampling: Sampling, generator: Any) -> int:
    import torch

    if sampling.temperature < COLDEST:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    ordered, indices = probabilities.sort(descending=True)
    kept = ordered.cumsum(0) - ordered < sampling.top_p
    kept[0] = True
    return int(indices[torch.multinomial(ordered * kept, 1, generator=generator)])


def answer(tuned: Any, tokenizer: Any, prompt: Sequence[int], sampling: Sampling, base: bool = False) -> str:
    """The whole answer at once; see `stream`."""
    return "".join(stream(tuned, tokenizer, prompt, sampling, base)).strip()
