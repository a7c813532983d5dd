"""Logits only where there is loss: equal to the model's own forward pass, loss and gradients."""

import pytest
import torch
from tests.conftest import make_model, make_tokenizer
from tests.data.helpers import example

from silotune.data.silos.batches import collate
from silotune.model import lora
from silotune.model.adapter import initial_adapter
from silotune.model.base import place
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings
from silotune.training import loss
from silotune.training.loss import answer_logits, head_is_plain, plain_logits, summed_losses


def examples(count=4):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        ids = torch.randint(3, 90, (6 + 3 * index,), generator=generator).tolist()
        rows.append(example(ids, [position >= 2 + index for position in range(len(ids))]))
    return rows


@pytest.fixture
def tuned(tiny_base):
    resident = tuner(str(tiny_base), LoraSettings(r=2), place("cpu", "auto"))
    adapter = initial_adapter(resident.spec, 0)
    lora.put(resident.model, {name: value + 0.01 for name, value in adapter.items()})
    return resident.model


def loss_and_gradients(tuned, logits_of, rows):
    tuned.zero_grad()
    total = torch.zeros(())
    for row in rows:
        batch = collate(row, 0, "cpu")
        loss = summed_losses(logits_of(tuned, batch), batch).sum()
        loss.backward()
        total += loss.detach()
    return total, {name: factor.grad.clone() for name, factor in lora.factors(tuned).items()}


def close(one, two):
    assert torch.allclose(one[0], two[0], rtol=1e-5)
    assert all(torch.allclose(one[1][name], two[1][name], rtol=1e-4, atol=1e-6) for name in one[1])


def test_answer_logits_equal_the_plain_path(tuned):
    rows = [examples()]
    close(loss_and_gradients(tuned, answer_logits, rows), loss_and_gradients(tuned, plain_logits, rows))


def test_padding_changes_nothing(tuned):
    together, apart = [examples()], [[one] for one in examples()]
    close(loss_and_gradients(tuned, answer_logits, together), loss_and_gradients(tuned, plain_logits, apart))


def test_the_loss_is_that_of_transformers(tuned):
    batch = collate(examples(), 0, "cpu")
    labels = torch.full_like(batch.ids, -100)
    labels[:, 1:][batch.predicts[:, :-1]] = batch.ids[:, 1:][batch.predicts[:, :-1]]
    expected = tuned(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
    ours = summed_losses(answer_logits(tuned, batch), batch).sum() / batch.loss_tokens
    assert torch.allclose(ours, expected, rtol=1e-5)


def test_no_gradient_reaches_the_base(tuned):
    loss_and_gradients(tuned, answer_logits, [examples()])
    trained = set(lora.factors(tuned))
    assert all(p.grad is None for n, p in tuned.named_parameters() if n.replace(".default", "") not in trained)


def resident_of(kind, folder, **settings):
    """A random model of another kind, loaded from a folder."""
    import transformers

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **settings
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tuner(str(folder), LoraSettings(r=2), place("cpu", "auto"))


GEMMA = {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize("cap", [0.01, 30.0])
@pytest.mark.parametrize("told", [True, False])
def test_a_model_that_caps_its_logits_takes_the_plain_path(tmp_path, monkeypatch, cap, told):
    """A cap of 30 does next to nothing to a random model's logits. It is seen in the logits, not in the name only."""
    capped = resident_of("Gemma2", tmp_path, final_logit_softcapping=cap, **GEMMA).model
    if not told:
        monkeypatch.setattr(loss, "_says_more", lambda config: False)
    assert not head_is_plain(capped, "cpu")


def test_a_scale_in_the_configuration_is_enough_to_doubt(tmp_path):
    scaled = resident_of("Cohere", tmp_path, intermediate_size=48, logit_scale=1 + 1e-7).model
    assert loss._says_more(scaled.config) and not head_is_plain(scaled, "cpu")


def test_heads_that_are_plain_and_heads_of_two_layers(tuned, tmp_path):
    assert head_is_plain(tuned, "cpu")
    plain = {"Gemma2": GEMMA | {"final_logit_softcapping": None}, "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32}}
    for kind, settings in plain.items():
        assert head_is_plain(resident_of(kind, tmp_path / kind, **settings).model, "cpu"), kind
    bert = resident_of("Bert", tmp_path / "bert", intermediate_size=48, is_decoder=True).model
    rem = resident_of("RemBert", tmp_path / "rem", intermediate_size=48, is_decoder=True, output_embedding_size=40)
    assert not head_is_plain(bert, "cpu") and not head_is_plain(rem.model, "cpu")


def test_make_model_is_deterministic(tmp_path, tiny_base):
    other = make_model(tmp_path / "again")
    assert (other / "model.safetensors").read_bytes() == (tiny_base / "model.safetensors").read_bytes()
