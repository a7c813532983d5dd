"""The short ways through the model: each gives the loss and the gradients of the model's own forward pass."""

import pytest
import torch
import transformers
from tests.conftest import make_tokenizer
from tests.data.helpers import example

from silotune.data.silos.batches import collate
from silotune.model import lora, targets
from silotune.model.adapter import initial_adapter
from silotune.model.base import place
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings
from silotune.training import forward, kept
from silotune.training.forward import ForwardPlan, each_token, forward_plan_of, losses, start_is_shared
from silotune.training.kept import Keep, make_kept
from silotune.training.loss import plain_logits, summed_losses
from silotune.training.loss import targets as wanted_tokens

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2}
MODELS = {
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": 8},
    "Gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 8, "final_logit_softcapping": None},
    "GPTNeoX": SMALL,
    "GPT2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "Bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 4, "attention_dropout": 0.0, "hidden_dropout": 0.0},
}


def make(folder, name, **changes):
    tokenizer = make_tokenizer()
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**{**MODELS[name], **changes}, vocab_size=len(tokenizer))
    getattr(transformers, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def adapted(base, **settings):
    resident = tuner(base, LoraSettings(r=2, targets="all", **settings), place("cpu", "auto"))
    generator = torch.Generator().manual_seed(1)
    adapter = initial_adapter(resident.spec, 0)
    lora.put(resident.model, {name: value + 0.05 * torch.randn(value.shape, generator=generator).numpy() for name, value in adapter.items()})  # fmt: skip
    return resident.model.train()


def rows(shared=14, count=4):
    """Rows of unequal length that begin alike."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(3, 300, (shared,), generator=generator).tolist()
    found = []
    for index in range(count):
        rest = torch.randint(3, 300, (6 + 3 * index,), generator=generator).tolist()
        found.append(example([*start, *rest], [False] * (shared + index) + [True] * (len(rest) - index)))
    return found


def blocks(tuned):
    causal = tuned.get_base_model()
    return [causal.get_submodule(name) for (name,) in targets.blocks(causal)[0]]


def measured(tuned, batch, forward_plan):
    """Loss, gradients, and right first choices; without ways, those of the oracle."""
    tuned.zero_grad()
    if forward_plan is None:
        logits = plain_logits(tuned, batch)
        loss, correct = summed_losses(logits, batch).sum(), int((logits.argmax(-1) == wanted_tokens(batch)).sum())
    else:
        loss = losses(tuned, batch, forward_plan).sum()
        each, right = each_token(tuned, batch, forward_plan)
        assert torch.allclose(each.sum(), loss, rtol=1e-5)
        correct = int(right.sum())
    loss.backward()
    return loss.detach(), {name: factor.grad.clone() for name, factor in lora.factors(tuned).items()}, correct


def assert_same(one, other):
    assert torch.allclose(one[0], other[0], rtol=1e-5)
    assert one[2] == other[2]
    for name in one[1]:
        scale = float(other[1][name].abs().max())
        assert float((one[1][name] - other[1][name]).abs().max()) <= 2e-4 * scale + 1e-7, name


@pytest.mark.parametrize("name", MODELS)
def test_a_shared_start_gives_the_plain_loss_and_gradients(tmp_path, name):
    tuned = adapted(make(tmp_path, name))
    batch = collate(rows(), 0, "cpu")
    assert batch.shared == 14
    forward_plan = forward_plan_of(tuned, "cpu", 0.0, Keep())
    assert forward_plan.head and forward_plan.start == (name not in ("Mistral", "Gemma2")), (
        "a window's cache forgets: not shared there"
    )
    assert_same(measured(tuned, batch, forward_plan), measured(tuned, batch, None))
    if forward_plan.start:
        sizes = []
        block = blocks(tuned)[0]
        handle = block.register_forward_pre_hook(lambda _, given, named: sizes.append((given[0] if given else named["hidden_states"]).shape[:2]), with_kwargs=True)  # fmt: skip
        losses(tuned, batch, forward_plan)
        handle.remove()
        assert sizes == [(1, 13), (4, batch.ids.shape[1] - 13)]


@pytest.mark.parametrize("name", MODELS)
def test_kept_activations_give_the_plain_loss_and_gradients(tmp_path, name):
    tuned = adapted(make(tmp_path, name), layers="upper-half")
    batch = collate(rows(), 0, "cpu")
    forward_plan = forward_plan_of(tuned, "cpu", 0.0, Keep())
    assert forward_plan.kept is not None and forward_plan.kept.lowest == 2
    oracle = measured(tuned, batch, None)
    assert_same(measured(tuned, batch, forward_plan), oracle)
    assert len(forward_plan.kept.outputs) == 4
    lower = forward_plan.kept.blocks[1]
    calls = []
    handle = next(lower.children()).register_forward_hook(lambda *_: calls.append(1))
    assert_same(measured(tuned, batch, forward_plan), oracle)
    handle.remove()
    assert not calls, "the lower blocks run once an example"
    assert_same(measured(tuned, batch, None), oracle)


def test_what_is_kept_does_not_depend_on_the_batch_that_asked(tmp_path):
    tuned = adapted(make(tmp_path, "Llama"), layers=[3])
    one, other = make_kept(tuned, Keep()), make_kept(tuned, Keep())
    batch = collate(rows(), 0, "cpu")
    with kept.feeding(one, batch):
        pass
    for row in rows():
        with kept.feeding(other, collate([row], 0, "cpu")):
            pass
    assert one.outputs.keys() == other.outputs.keys()
    assert all((one.outputs[key] == other.outputs[key]).all() for key in one.outputs)


def test_kept_activations_stay_in_their_bound_and_are_right_past_it(tmp_path):
    tuned = adapted(make(tmp_path, "Llama"), layers=[3])
    batch = collate(rows(), 0, "cpu")
    bound = 2 * 32 * 4 * len(rows()[1].ids)
    narrow = make_kept(tuned, Keep(most_bytes=bound))
    forward_plan = ForwardPlan(True, False, narrow)
    oracle = measured(tuned, batch, None)
    assert_same(measured(tuned, batch, forward_plan), oracle)
    assert 0 < narrow.held <= bound and len(narrow.outputs) < 4
    assert_same(measured(tuned, batch, forward_plan), oracle)


def test_in_bfloat16_they_take_half_and_are_near(tmp_path):
    tuned = adapted(make(tmp_path, "Llama"), layers=[3])
    batch = collate(rows(), 0, "cpu")
    half, full = make_kept(tuned, Keep("bfloat16")), make_kept(tuned, Keep())
    loss = measured(tuned, batch, ForwardPlan(True, False, half))[0]
    exact = measured(tuned, batch, ForwardPlan(True, False, full))[0]
    assert half.held * 2 == full.held
    assert loss == pytest.approx(float(exact), rel=1e-2) and loss != exact


def test_nothing_is_kept_where_it_saves_nothing_or_is_not_exact(tmp_path):
    base = make(tmp_path / "llama", "Llama")
    assert make_kept(adapted(base), Keep()) is None, "block 0 carries an adapter"
    assert make_kept(adapted(base, layers=[1]), Keep("off")) is None
    drops = make(tmp_path / "gpt2", "GPT2", resid_pdrop=0.1)
    assert make_kept(adapted(drops, layers=[2]), Keep()) is None, "the lower part draws anew each time"


def test_another_text_is_another_key(tmp_path):
    tuned = adapted(make(tmp_path, "Llama"), layers=[3])
    held = make_kept(tuned, Keep())
    ids = torch.arange(3, 20)
    held.of(ids), held.of(ids.clone()), held.of(ids[:-1]), held.of(ids + 1)
    assert len(held.outputs) == 3


def test_dropout_of_the_adapter_shares_no_start(tmp_path):
    tuned = adapted(make(tmp_path, "Llama"), dropout=0.1)
    assert start_is_shared(tuned, "cpu") and not forward_plan_of(tuned, "cpu", 0.1, Keep()).start


def test_chunks_of_the_output_layer_add_up(tmp_path, monkeypatch):
    tuned = adapted(make(tmp_path, "Llama"))
    batch = collate(rows(), 0, "cpu")
    whole = measured(tuned, batch, ForwardPlan(True, False))
    seen = []
    head = tuned.get_base_model().get_output_embeddings()
    linear = torch.nn.functional.linear

    def spy(given, weight, bias=None):
        if weight is head.weight:
            seen.append(len(given))
        return linear(given, weight, bias)

    monkeypatch.setattr(forward.functional, "linear", spy)
    monkeypatch.setattr(forward, "MOST_LOGITS", 5 * 2 * 4 * head.weight.shape[0])
    assert_same(measured(tuned, batch, ForwardPlan(True, False)), whole)
    assert {5, 10} <= set(seen) and max(seen) == 10 and sum(seen) == 2 * batch.loss_tokens


def test_no_gradient_is_worked_out_below_the_lowest_adapter(tmp_path):
    tuned = adapted(make(tmp_path, "Llama"), layers=[2, 3])
    tracked = []
    for block in blocks(tuned):
        block.register_forward_hook(lambda _, __, output: tracked.append((output[0] if isinstance(output, tuple) else output).requires_grad))  # fmt: skip
    losses(tuned, collate(rows(), 0, "cpu"), ForwardPlan(True, False))
    assert tracked == [False, False, True, True]


def test_rows_that_share_nothing_or_stand_alone_take_the_whole_way(tmp_path):
    tuned = adapted(make(tmp_path, "Llama"))
    for given in (rows(shared=0), rows(count=1), [*rows(), example([5, 6, 7], [False, True, True])]):
        batch = collate(given, 0, "cpu")
        assert batch.shared < forward.SHORTEST_START
        assert_same(measured(tuned, batch, ForwardPlan(True, True)), measured(tuned, batch, None))


def test_a_start_ends_where_loss_begins():
    same = [example([9] * 20, [False] * 12 + [True] * 8)] * 3
    assert collate(same, 0, "cpu").shared == 12
    assert collate([example([9] * 20, [True] * 20)] * 3, 0, "cpu").shared == 0
