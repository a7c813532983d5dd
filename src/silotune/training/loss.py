"""Cross-entropy at the tokens of answers, with logits computed there and nowhere else.

`answer_logits` is the fast path: hidden states at the positions that carry loss go through the output layer, the
rest do not. `plain_logits` is its oracle, the model's own forward pass. Some models do more after the output
layer (soft caps, scalings): `head_is_plain` finds out by comparing the two once.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from silotune.data.silos.batches import Batch
from silotune.model.protocols import Config, Decoder, TunedModel
from silotune.model.trial import succeeds
from silotune.model.tuner import while_resident


def plain_logits(tuned: TunedModel, batch: Batch) -> Tensor:
    """float32 (loss tokens, vocabulary) from the model's own forward pass."""
    logits: Tensor = tuned(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return logits[batch.predicts].float()


def answer_logits(tuned: TunedModel, batch: Batch) -> Tensor:
    """float32 (loss tokens, vocabulary), computed at the positions that carry loss only."""
    causal = tuned.get_base_model()
    decoder: Decoder = getattr(causal, causal.base_model_prefix)
    hidden = decoder(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
    logits: Tensor = causal.get_output_embeddings()(hidden[batch.predicts])
    return logits.float()


@while_resident
def head_is_plain(tuned: TunedModel, device: str) -> bool:
    """Whether `answer_logits` gives what the model itself gives: tried once a model, on a few tokens.

    Tried with the hidden states as they are and with much larger ones: a soft cap of 30 changes large logits only,
    and a model that has not learned yet has none.
    """

    def agrees() -> bool:
        if _says_more(tuned.get_base_model().config.get_text_config()):
            return False
        batch = _trial(tuned, device)
        with torch.no_grad():
            return all(_agree(tuned, batch, factor) for factor in (1.0, LARGE))

    training = tuned.training
    tuned.eval()
    try:
        return succeeds(agrees)
    finally:
        tuned.train(training)


LARGE = 1e4
"""By this the hidden states are multiplied to see what a model does to large logits."""
AGREE = {"float32": 5e-5, "bfloat16": 2e-2}
"""How far logits of the two paths may lie apart, relative to the largest one: rounding, and nothing else."""


def _says_more(config: Config) -> bool:
    """Whether the configuration names something that is done to logits (a soft cap, a scale)."""
    named = [value for name, value in config.to_dict().items() if "logit" in name and "attn" not in name]
    return any(type(value) in (int, float) and value not in (0, 1) for value in named)


def _trial(tuned: TunedModel, device: str) -> Batch:
    """Two rows of tokens that mean nothing, the second with padding at its end."""
    vocabulary = tuned.get_base_model().config.get_text_config().vocab_size
    ids = torch.arange(1, 17, device=device).reshape(2, 8) % vocabulary
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return Batch(ids, mask, mask.bool())


def _agree(tuned: TunedModel, batch: Batch, factor: float) -> bool:
    """Whether the two paths give the same logits where what comes into the output layer is `factor` times itself."""
    head = tuned.get_base_model().get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor,))
    try:
        ours, theirs = answer_logits(tuned, batch), plain_logits(tuned, batch)
    finally:
        hook.remove()
    dtype = str(head.weight.dtype).removeprefix("torch.")
    return bool((ours - theirs).abs().max() <= AGREE.get(dtype, AGREE["bfloat16"]) * theirs.abs().max())


def targets(batch: Batch) -> Tensor:
    """int64 (loss tokens,): the tokens to be predicted, in the order of the logits."""
    return batch.ids[:, 1:][batch.predicts[:, :-1]]


def summed_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Sums of the cross-entropy over the loss tokens of each silo of the batch, (silos,), in nats."""
    sizes = batch.loss_tokens_of_silos
    parts = zip(torch.split(logits, sizes), torch.split(targets(batch), sizes), strict=True)
    return torch.stack([functional.cross_entropy(part, wanted, reduction="sum") for part, wanted in parts])
