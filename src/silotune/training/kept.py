"""Kept activations: where no adapter sits below block k, what the blocks below give is computed once an example.

The frozen lower part of the model is a function of an example's tokens alone, so its output may be kept across steps,
rounds and adapters. It is computed one example at a time, so that it does not depend on the batch that first asked,
and is known by the example's tokens: another text, template or length is another key, another model another `Kept`.
In float32 the loss and its gradients are those of the plain path; in bfloat16 they are rounded to 8 bits.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from silotune.data.silos.batches import Batch
from silotune.model import targets
from silotune.model.protocols import Decoder, Model, TunedModel
from silotune.model.trial import succeeds


@dataclass(frozen=True)
class Keep:
    """Whether and how activations are kept."""

    numbers: Literal["float32", "bfloat16", "off"] = "float32"
    most_bytes: int = 1 << 30
    """In a process; what is over it is computed each time it is asked for."""


@dataclass
class Kept:
    """Outputs of the lower blocks by example, up to a bound."""

    tuned: TunedModel
    blocks: list[nn.Module]
    lowest: int
    """Number of the first block that carries an adapter."""
    dtype: torch.dtype
    most_bytes: int
    held: int = 0
    """Bytes that are kept now."""
    outputs: dict[bytes, Tensor] = field(default_factory=dict)
    in_tuple: bool = False
    """Whether a block of this model returns its output in a tuple."""

    def of(self, ids: Tensor) -> Tensor:
        """What block `lowest` receives for one example: (tokens, width), in the model's own numbers."""
        key = hashlib.blake2b(ids.cpu().numpy().tobytes(), digest_size=16).digest()
        found = self.outputs.get(key)
        if found is None:
            found = self._computed(ids).to(self.dtype)
            if self.held + found.nbytes <= self.most_bytes:
                self.outputs[key] = found
                self.held += found.nbytes
        return found

    def _computed(self, ids: Tensor) -> Tensor:
        training = self.tuned.training
        self.tuned.eval()
        try:
            with torch.no_grad(), _caught(self.blocks[self.lowest]) as caught:
                causal = self.tuned.get_base_model()
                with suppress(_Enough):
                    getattr(causal, causal.base_model_prefix)(input_ids=ids[None], use_cache=False)
            return caught[0][0]
        finally:
            self.tuned.train(training)


Positional = tuple[object, ...]
"""What a block is given without names."""


class _Enough(Exception):
    """The lower part is done."""


@contextmanager
def _caught(block: nn.Module) -> Iterator[list[Tensor]]:
    """Stop a forward pass where it reaches a block, and keep what the block was to receive."""
    found: list[Tensor] = []

    def catch(_: object, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        found.append(arguments[0] if arguments else named["hidden_states"])
        raise _Enough

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def feeding(kept: Kept, batch: Batch) -> Iterator[None]:
    """While it lasts, the blocks below `lowest` do nothing, and that block receives what is kept for the batch."""
    rows = [kept.of(ids[: int(mask.sum())]) for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    hidden = torch.zeros(*batch.ids.shape, rows[0].shape[-1], dtype=_numbers(kept.tuned), device=batch.ids.device)
    for number, row in enumerate(rows):
        hidden[number, : len(row)] = row
    with _replaced(kept, hidden):
        yield


def _numbers(tuned: TunedModel) -> torch.dtype:
    dtype: torch.dtype = tuned.get_base_model().get_input_embeddings().weight.dtype
    return dtype


@contextmanager
def _replaced(kept: Kept, hidden: Tensor) -> Iterator[None]:
    def through(hidden_states: Tensor, *_: object, **__: object) -> Tensor | tuple[Tensor]:
        return (hidden_states,) if kept.in_tuple else hidden_states

    def receive(_: object, arguments: Positional, named: dict[str, object]) -> tuple[Positional, dict[str, object]]:
        return ((hidden, *arguments[1:]), named) if arguments else (arguments, {**named, "hidden_states": hidden})

    lower = kept.blocks[: kept.lowest]
    handle = kept.blocks[kept.lowest].register_forward_pre_hook(receive, with_kwargs=True)
    for block in lower:
        block.forward = through
    try:
        yield
    finally:
        handle.remove()
        for block in lower:
            del block.forward


def make_kept(tuned: TunedModel, keep: Keep) -> Kept | None:
    """Kept activations for a model, or None where they are off, would save nothing or not be exact.

    They are not where the lowest block carries an adapter, the lower part drops out at random in training, or blocks
    hand each other more than hidden states; the last is found by trying.
    """
    if keep.numbers == "off":
        return None
    causal = tuned.get_base_model()
    stack, _ = targets.blocks(causal)
    if any(len(parts) > 1 for parts in stack):
        return None
    blocks = [causal.get_submodule(name) for (name,) in stack]
    carrying = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    lowest = carrying.index(True) if True in carrying else 0
    if not lowest or drops_out(causal, blocks[:lowest]):
        return None
    dtype = torch.bfloat16 if keep.numbers == "bfloat16" else _numbers(tuned)
    kept = Kept(tuned, blocks, lowest, dtype, keep.most_bytes)
    return kept if _works(kept) else None


def drops_out(causal: Model, parts: Sequence[Model | nn.Module]) -> bool:
    """Whether a model, or one of these modules of it, drops out at random in training."""
    config = causal.config.get_text_config()
    configured = any(
        getattr(config, name, 0) for name in ("attention_dropout", "hidden_dropout", "embd_pdrop", "dropout")
    )
    modules = (module for part in parts for module in part.modules())
    return configured or any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in modules)


def _works(kept: Kept) -> bool:
    """Whether feeding what was kept gives the model's own last hidden states."""
    causal = kept.tuned.get_base_model()
    decoder: Decoder = getattr(causal, causal.base_model_prefix)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(causal.config.get_text_config().vocab_size, (2, 24), generator=generator)
    ids = ids.to(causal.device)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    batch = Batch(ids, mask, mask == 1)
    training = kept.tuned.training
    kept.tuned.eval()

    def note(_: object, __: object, output: object) -> None:
        kept.in_tuple = isinstance(output, tuple)

    def agrees() -> bool:
        with torch.no_grad():
            expected = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[mask == 1]
            handle.remove()
            trial = Kept(kept.tuned, kept.blocks, kept.lowest, _numbers(kept.tuned), 0, in_tuple=kept.in_tuple)
            with feeding(trial, batch):
                found = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[mask == 1]
        return same(found, expected)

    handle = kept.blocks[0].register_forward_hook(note)
    try:
        return succeeds(agrees)
    finally:
        handle.remove()
        kept.tuned.train(training)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two results differ by rounding alone, at the precision of their numbers."""
    tolerance = 1e-4 if one.dtype == torch.float32 else 3e-2
    return bool((one.float() - other.float()).abs().max() <= tolerance * other.float().abs().max())
