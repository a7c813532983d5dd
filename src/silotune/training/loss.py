"""Cross-entropy at the tokens of answers, with logits computed there and nowhere else.

`answer_logits` is the fast path: hidden states at the positions that carry loss go through the output layer, the
rest do not. `plain_logits` is its oracle, the model's own forward pass. Some models do more after the output
layer (soft caps, scalings): `head_is_plain` finds out by comparing the two once.
"""

import functools
from typing import Any

from silotune.data.batches import Batch


def plain_logits(tuned: Any, batch: Batch) -> Any:
    """float32 (loss tokens, vocabulary) from the model's own forward pass."""
    logits = tuned(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return logits[batch.predicts].float()


def answer_logits(tuned: Any, batch: Batch) -> Any:
    """float32 (loss tokens, vocabulary), computed at the positions that carry loss only."""
    causal = tuned.get_base_model()
    decoder = getattr(causal, causal.base_model_prefix)
    hidden = decoder(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
    return causal.get_output_embeddings()(hidden[batch.predicts]).float()


@functools.lru_cache(maxsize=1)
def head_is_plain(tuned: Any, device: str) -> bool:
    """Whether `answer_logits` gives what the model itself gives: tried once a model, on a few tokens."""
    import torch

    causal = tuned.get_base_model()
    if not hasattr(causal, causal.base_model_prefix) or causal.get_output_embeddings() is None:
        return False
    ids = torch.arange(1, 9, device=device).reshape(1, 8) % causal.config.get_text_config().vocab_size
    batch = Batch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
    training = tuned.training
    tuned.eval()
    with torch.no_grad():
        same = torch.allclose(answer_logits(tuned, batch), plain_logits(tuned, batch), rtol=1e-3, atol=1e-3)
    tuned.train(training)
    return bool(same)


def targets(batch: Batch) -> Any:
    """int64 (loss tokens,): the tokens to be predicted, in the order of the logits."""
    return batch.ids[:, 1:][batch.predicts[:, :-1]]


def summed_loss(logits: Any, batch: Batch) -> Any:
    """Sum of the cross-entropy over the batch's loss tokens, in nats."""
    import torch.nn.functional as functional

    return functional.cross_entropy(logits, targets(batch), reduction="sum")
