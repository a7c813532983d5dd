"""Answers to several prompts in one forward pass: the same tokens as one at a time, up to rounding."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING

from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.inference import generation
from silotune.inference.generation import Sampling, Speech
from silotune.model.protocols import Cache, TunedModel
from silotune.model.stopping import stops_of
from silotune.model.targets import text_config

if TYPE_CHECKING:
    from torch import Tensor


def answers(
    tuned: TunedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch: int,
    base: bool = False,
) -> list[str]:
    """The answers to several prompts, in their order, with the adapter that lies in the model.

    Prompts of like length go together, shorter ones filled up on the left. A model whose state or positions know
    nothing of filling gets prompts of equal length only. Each prompt is sampled with a generator of its own, so an
    answer does not depend on what it is asked together with, but where two tokens are as likely as each other to
    within rounding.

    Args:
        tuned: PEFT's model.
        tokenizer: of the base.
        prompts: token ids of each.
        sampling: how to choose tokens; the seed is that of each prompt.
        batch: prompts in a forward pass at most.
        base: switch the adapter off, to hear the base model.

    Raises:
        LengthError: a prompt leaves no room for an answer.
    """
    stops = stops_of(tuned.generation_config, tokenizer)
    speeches = [Speech(tokenizer, stops, sampling, generation.room(tuned, prompt, sampling)) for prompt in prompts]
    found = [""] * len(prompts)
    for group in _groups(prompts, batch, fills(tuned)):
        with tuned.disable_adapter() if base else nullcontext():
            texts = _together(tuned, [list(prompts[i]) for i in group], [speeches[i] for i in group], sampling)
        for index, text in zip(group, texts, strict=True):
            found[index] = text.strip()
    return found


def _groups(prompts: Sequence[Sequence[int]], batch: int, filled: bool) -> Iterator[list[int]]:
    """Numbers of the prompts that go together, the longest first: what does not fit into memory shows at once."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for _, alike in groupby(order, key=lambda index: 0 if filled else len(prompts[index])):
        members = list(alike)
        yield from (members[start : start + batch] for start in range(0, len(members), batch))


def fills(tuned: TunedModel) -> bool:
    """Whether a shorter prompt may be filled up on the left: mask and positions must be all that a token knows of it.

    Recurrent states and convolutions would take the filling in. Rotary embeddings that change with the length of the
    input ("dynamic", "longrope") would take the longest prompt's for all.
    """
    model = tuned.get_base_model()
    config = text_config(model)
    accepts = inspect.signature(model.forward).parameters
    rotary = str(getattr(config, "rope_parameters", None))
    return (
        {"attention_mask", "position_ids", "past_key_values"} <= accepts.keys()
        and not model._is_stateful
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
        and "dynamic" not in rotary
        and "longrope" not in rotary
    )


def _together(tuned: TunedModel, prompts: list[list[int]], speeches: list[Speech], sampling: Sampling) -> list[str]:
    """The answers to the prompts of one group. A prompt leaves the forward pass when its answer has ended."""
    import torch

    generators = [torch.Generator().manual_seed(sampling.seed) for _ in prompts]
    texts = [""] * len(prompts)
    step = _stepper(tuned, prompts, speeches)
    speaking = list(range(len(prompts)))
    with torch.inference_mode():
        while speaking:
            logits = step(speaking)
            going_on = []
            for row, index in enumerate(speaking):
                piece = speeches[index].add(generation._choose(logits[row], sampling, generators[index]))
                texts[index] += piece.text
                if piece.finish is None:
                    going_on.append(index)
            speaking = going_on
    return texts


def _stepper(tuned: TunedModel, prompts: list[list[int]], speeches: list[Speech]) -> "Callable[[list[int]], Tensor]":
    """A function from the numbers of the prompts that still speak to float32 logits (they, vocabulary) of their next
    tokens, on the CPU. Who has left does not come back."""
    import torch

    accepts = inspect.signature(tuned.get_base_model().forward).parameters
    cached = "past_key_values" in accepts
    options: dict[str, object] = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}
    width = max(map(len, prompts))
    filled = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    read = torch.tensor([[at >= width - len(prompt) for at in range(width)] for prompt in prompts], dtype=torch.long)
    cache: Cache | None = None
    held = list(range(len(prompts)))

    def step(speaking: list[int]) -> "Tensor":
        nonlocal cache, held
        if cache is not None and speaking != held:
            cache.reorder_cache(torch.tensor([held.index(index) for index in speaking]))
        held = speaking
        said = [speeches[index].said for index in speaking]
        if cache is None:
            ids = torch.tensor([filled[index] + own for index, own in zip(speaking, said, strict=True)])
        else:
            ids = torch.tensor([own[-1:] for own in said])
        given: dict[str, object] = {"past_key_values": cache, "use_cache": True} if cached else {}
        mask = torch.nn.functional.pad(read[speaking], (0, len(said[0])), value=1)
        if not mask.all():  # of prompts of one length the model knows it all
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            given |= {"attention_mask": mask.to(tuned.device), "position_ids": positions.to(tuned.device)}
        output = tuned(input_ids=ids.to(tuned.device), **given, **options)
        cache = output.past_key_values if cached else None
        return output.logits[:, -1].float().cpu()

    return step
