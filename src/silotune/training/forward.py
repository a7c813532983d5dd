"""From a batch to its loss by the shortest exact way: nothing is computed that the loss does not need.

    start     tokens that all rows begin with (a chat template's system turn) go through the model once a batch
    kept      where no adapter sits below block k, the output of the blocks below is kept for every example (`kept`)
    head      logits only at positions that carry loss, in chunks, each turned into its loss and gradient at once

Each way is tried against the model's own forward pass when a model is loaded, and not taken where the two differ;
`loss.plain_logits` stays as the oracle. Gradients stop below the lowest adapter by themselves: nothing there needs one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from silotune.data.silos.batches import Batch
from silotune.model.protocols import Cache, Decoder, TunedModel
from silotune.model.trial import succeeds
from silotune.model.tuner import while_resident
from silotune.training.kept import Keep, Kept, feeding, make_kept, same
from silotune.training.loss import head_is_plain, plain_logits, summed_losses, targets

MOST_LOGITS = 256 << 20
"""Bytes of logits held at a time, twice over."""
SHORTEST_START = 8
"""Tokens that rows must share at their start for it to be worth a pass of its own."""


@dataclass(frozen=True)
class ForwardPlan:
    """Which short ways are exact for a model."""

    head: bool
    start: bool
    kept: Kept | None = None


def losses(tuned: TunedModel, batch: Batch, forward_plan: ForwardPlan) -> Tensor:
    """Sums of the cross-entropy over the loss tokens of each silo of the batch, (silos,), in nats; with gradients."""
    if not forward_plan.head:
        return summed_losses(plain_logits(tuned, batch), batch)
    head = tuned.get_base_model().get_output_embeddings()
    hidden = answer_hidden(tuned, batch, forward_plan)
    wanted, sizes = targets(batch), batch.loss_tokens_of_silos
    summed: Tensor = _SummedLoss.apply(hidden, head, wanted, sizes)  # type: ignore[no-untyped-call]
    return summed


def each_token(tuned: TunedModel, batch: Batch, forward_plan: ForwardPlan) -> tuple[Tensor, Tensor]:
    """Cross-entropy (loss tokens,) in nats, float32, and whether each was the first choice; without gradients."""
    wanted = targets(batch)
    with torch.no_grad():
        if not forward_plan.head:
            logits = plain_logits(tuned, batch)
            return functional.cross_entropy(logits, wanted, reduction="none"), logits.argmax(-1) == wanted
        head = tuned.get_base_model().get_output_embeddings()
        hidden = answer_hidden(tuned, batch, forward_plan)
        losses, first = [hidden.new_zeros(0, dtype=torch.float32)], [wanted.new_zeros(0, dtype=torch.bool)]
        size = max(1, MOST_LOGITS // (4 * head.weight.shape[0]))
        for start in range(0, len(hidden), size):
            logits = functional.linear(hidden[start : start + size], head.weight, head.bias).float()
            tokens = wanted[start : start + size]
            losses.append(functional.cross_entropy(logits, tokens, reduction="none"))
            first.append(logits.argmax(-1) == tokens)
    return torch.cat(losses), torch.cat(first)


def answer_hidden(tuned: TunedModel, batch: Batch, forward_plan: ForwardPlan) -> Tensor:
    """Last hidden states (loss tokens, width) at the positions that carry loss."""
    if forward_plan.kept is not None:
        with feeding(forward_plan.kept, batch):
            return _hidden(tuned, batch)
    if forward_plan.start and batch.shared >= SHORTEST_START:
        return _hidden_after_start(tuned, batch)
    return _hidden(tuned, batch)


def _decoder(tuned: TunedModel) -> Decoder:
    causal = tuned.get_base_model()
    decoder: Decoder = getattr(causal, causal.base_model_prefix)
    return decoder


def _hidden(tuned: TunedModel, batch: Batch) -> Tensor:
    states = _decoder(tuned)(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
    return states[batch.predicts]


def _hidden_after_start(tuned: TunedModel, batch: Batch) -> Tensor:
    """Run each silo's shared start as one row, then every row's rest with its start's keys and values before it.

    The last token of the start is left to the rows: it may predict a token that carries loss.
    """
    start, rows = batch.shared - 1, len(batch.ids) // batch.silos
    cache = _cache_of(tuned, batch.ids[::rows, :start])
    for layer in cache.layers:
        layer.keys, layer.values = _repeated(layer.keys, rows), _repeated(layer.values, rows)
    states = _decoder(tuned)(
        input_ids=batch.ids[:, start:], attention_mask=batch.mask, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return states[batch.predicts[:, start:]]


def _repeated(tensor: Tensor, times: int) -> Tensor:
    """Each row so many times, one after another."""
    return tensor[:, None].expand(-1, times, *(-1 for _ in tensor.shape[1:])).flatten(0, 1)


def _cache_of(tuned: TunedModel, ids: Tensor) -> Cache:
    """Keys and values of a start, with their gradients."""
    from transformers import DynamicCache

    cache: Cache = DynamicCache(config=tuned.get_base_model().config)
    _decoder(tuned)(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


class _SummedLoss(torch.autograd.Function):
    """Cross-entropy of a frozen linear output layer, chunk by chunk, each with its gradient while its logits are there.

    For logits z of one token with target t, loss = log sum exp(z) - z_t, and its gradient is softmax(z) - onehot(t).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: torch.nn.Linear, wanted: Tensor, sizes: list[int]) -> Tensor:
        """Sums of the loss over (tokens, width) hidden states: one per part of `sizes` tokens, one after another."""
        needed = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needed else None
        losses = torch.zeros(len(sizes), dtype=torch.float32, device=hidden.device)
        size = max(1, MOST_LOGITS // (2 * 4 * head.weight.shape[0]))
        for start in range(0, len(hidden), size):
            tokens = wanted[start : start + size, None]
            logits = functional.linear(hidden[start : start + size], head.weight, head.bias).float()
            norm = logits.logsumexp(-1, keepdim=True)
            _add(norm - logits.gather(-1, tokens), start, losses, sizes)
            if gradient is not None:
                slope = logits.sub_(norm).exp_()
                slope.scatter_add_(-1, tokens, -torch.ones_like(tokens, dtype=slope.dtype))
                gradient[start : start + size] = slope.to(head.weight.dtype) @ head.weight
        ctx.gradient, ctx.sizes = gradient, sizes
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the hidden states."""
        scale = outer[0].repeat_interleave(torch.tensor(ctx.sizes, device=outer[0].device))[:, None]
        return (ctx.gradient * scale).to(ctx.gradient.dtype), None, None, None


def _add(values: Tensor, start: int, sums: Tensor, sizes: Sequence[int]) -> None:
    """Add the values of tokens `start`, `start` + 1, ... to the sums of the parts that they belong to."""
    first = -start
    for part, size in enumerate(sizes):
        sums[part] += values[max(first, 0) : max(first + size, 0)].sum()
        first += size


# ------------------------------------------------------------------------------------------ which are exact


@while_resident
def forward_plan_of(tuned: TunedModel, device: str, dropout: float, keep: Keep) -> ForwardPlan:
    """The ways that are exact for a model, found out once for the model's life.

    Args:
        tuned: PEFT's model.
        device: where it computes.
        dropout: of the adapter; where it is not 0 every row draws its own, so no start is shared.
        keep: of what the blocks below the lowest adapter give.
    """
    head = type(tuned.get_base_model().get_output_embeddings()) is torch.nn.Linear and head_is_plain(tuned, device)
    return ForwardPlan(
        head, head and not dropout and start_is_shared(tuned, device), make_kept(tuned, keep) if head else None
    )


def start_is_shared(tuned: TunedModel, device: str) -> bool:
    """Whether a start computed once gives every row what the whole row gives."""
    from transformers.cache_utils import DynamicLayer

    vocabulary = tuned.get_base_model().config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (3, 40), generator=generator).to(device)
    ids[:, :20] = ids[0, :20]
    mask = torch.ones_like(ids)
    mask[1, 33:] = 0
    batch = Batch(ids, mask, (mask == 1) & (torch.arange(40, device=device) >= 19), shared=20)

    def agrees() -> bool:
        with torch.no_grad():
            if not all(type(layer) is DynamicLayer for layer in _cache_of(tuned, ids[:1, :8]).layers):
                return False
            return same(_hidden_after_start(tuned, batch), _hidden(tuned, batch))

    training = tuned.training
    tuned.eval()
    try:
        return succeeds(agrees)
    finally:
        tuned.train(training)
