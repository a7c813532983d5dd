"""Which layers of which architecture carry an adapter, on tiny configurations without weights."""

from collections import Counter

import pytest
import torch
import transformers

from silotune.errors import ModelError
from silotune.model import lora, targets
from silotune.settings import LoraSettings

SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 50, "pad_token_id": 0}
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
QKVO = {f"self_attn.{one}_proj" for one in "qkvo"}
GATED = {f"mlp.{one}_proj" for one in ("gate", "up", "down")}

EVERY = {
    "Llama": (LLAMA, QKVO, GATED),
    "Mistral": (LLAMA, QKVO, GATED),
    "Qwen2": (LLAMA, QKVO, GATED),
    "Qwen3": (LLAMA | {"head_dim": 8}, QKVO, GATED),
    "Gemma2": (LLAMA | {"head_dim": 8}, QKVO, GATED),
    "Phi3": (LLAMA, {"self_attn.qkv_proj", "self_attn.o_proj"}, {"mlp.gate_up_proj", "mlp.down_proj"}),
    "Phi": (LLAMA, {f"self_attn.{one}" for one in ("q_proj", "k_proj", "v_proj", "dense")}, {"mlp.fc1", "mlp.fc2"}),
    "GPTNeoX": (
        SMALL | {"intermediate_size": 48},
        {"attention.query_key_value", "attention.dense"},
        {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    ),
    "OPT": (
        SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        {f"self_attn.{one}_proj" for one in ("q", "k", "v", "out")},
        {"fc1", "fc2"},
    ),
    "GPT2": (
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 50},
        {"attn.c_attn", "attn.c_proj"},
        {"mlp.c_fc", "mlp.c_proj"},
    ),
    "Bloom": (
        {"hidden_size": 32, "n_layer": 4, "n_head": 4, "vocab_size": 50},
        {"self_attention.query_key_value", "self_attention.dense"},
        {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    ),
    "Falcon": (
        SMALL,
        {"self_attention.query_key_value", "self_attention.dense"},
        {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    ),
    "Rwkv": (
        SMALL | {"attention_hidden_size": 32},
        {f"attention.{one}" for one in ("key", "value", "receptance", "output")},
        {f"feed_forward.{one}" for one in ("key", "value", "receptance")},
    ),
    # experts are one tensor: only the attention is left
    "Mixtral": (LLAMA | {"num_local_experts": 2}, QKVO, set()),
    "Qwen2Moe": (
        LLAMA | {"num_experts": 4, "moe_intermediate_size": 16},
        QKVO,
        {"mlp.shared_expert_gate", *(name.replace("mlp", "mlp.shared_expert") for name in GATED)},
    ),
}
"""What every block has: a configuration, the layers inside attention, and the others."""


def skeleton_of(family, settings):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**settings))


def adapted(model, **settings):
    """How often each layer carries an adapter, by its name in its block; PEFT must adapt what was chosen and no more."""
    settings = LoraSettings(r=2, **settings)
    chosen = targets.target_modules(model, settings)
    factors = lora.factors(lora.attach(model, settings))
    marks = {name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for name in factors}
    assert set(chosen) == {mark for mark in marks if not mark.endswith("lora_B.weight")}
    blocks = {block: number for number, parts in enumerate(targets.blocks(model)[0]) for block in parts}
    return Counter(
        next((name.removeprefix(block + ".") for block in blocks if name.startswith(block + ".")), name)
        for name in chosen
    )


@pytest.mark.parametrize("family", EVERY)
def test_families_whose_blocks_are_alike(family):
    settings, attention, others = EVERY[family]
    assert adapted(skeleton_of(family, settings), targets="attention") == dict.fromkeys(attention, 4)
    assert adapted(skeleton_of(family, settings), targets="all") == dict.fromkeys(attention | others, 4)


JAMBA = LLAMA | {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2, "expert_layer_offset": 1,
                 "expert_layer_period": 2, "mamba_d_state": 4, "mamba_dt_rank": 4}  # fmt: skip


def test_blocks_of_several_kinds():
    """Jamba: every second block is attention with experts, the others are mixers."""
    assert adapted(skeleton_of("Jamba", JAMBA)) == dict.fromkeys(QKVO, 2)
    feed_forward = {name.replace("mlp", "feed_forward") for name in GATED}
    everything = dict.fromkeys(QKVO | feed_forward | {"mamba.in_proj", "mamba.x_proj"}, 2)
    assert adapted(skeleton_of("Jamba", JAMBA), targets="all") == everything
    assert adapted(skeleton_of("Jamba", JAMBA), layers=[0, 1]) == dict.fromkeys(QKVO, 1)


def test_a_list_inside_a_block_is_not_the_blocks():
    """Zamba2: blocks share a transformer with a list of small adapters of its own in its feed-forward."""
    model = skeleton_of("Zamba2", LLAMA | {"num_hidden_layers": 8, "num_key_value_heads": 4, "mamba_d_state": 4,
                        "mamba_ngroups": 1, "layers_block_type": ["mamba", "hybrid"] * 4, "num_mem_blocks": 1})  # fmt: skip
    names, certain = targets.blocks(model)
    assert certain and names == [(f"model.layers.{index}",) for index in range(8)]
    assert {name.split(".")[-1] for name in targets.target_modules(model, LoraSettings())} == {f"{one}_proj" for one in "qkvo"}  # fmt: skip


def test_of_several_towers_it_is_the_language_models():
    """Git: an image encoder with as many blocks as the text decoder."""
    vision = {"hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48, "num_attention_heads": 4}
    model = skeleton_of("Git", SMALL | {"intermediate_size": 48, "vision_config": vision})
    names, certain = targets.blocks(model)
    assert certain and names == [(f"git.encoder.layer.{index}",) for index in range(4)]


def test_attention_and_feed_forward_in_lists_of_their_own():
    """XLM."""
    settings = {"emb_dim": 32, "n_layers": 4, "n_heads": 4, "n_words": 50}
    assert adapted(skeleton_of("XLM", settings)) == dict.fromkeys(("q_lin", "k_lin", "v_lin", "out_lin"), 4)
    upper = adapted(skeleton_of("XLM", settings), targets="all", layers=[3])
    assert upper == dict.fromkeys(("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"), 1)


def test_blocks_that_are_not_certain_are_not_needed_where_all_are_meant():
    """Blenderbot's configuration counts the blocks of the encoder, which a causal model does not have."""
    settings = {"d_model": 32, "vocab_size": 50, "encoder_layers": 2, "decoder_layers": 4, "decoder_ffn_dim": 48,
                "decoder_attention_heads": 4, "encoder_attention_heads": 4}  # fmt: skip
    model = skeleton_of("Blenderbot", settings)
    assert not targets.blocks(model)[1] and len(targets.blocks(model)[0]) == 4
    found = adapted(model, targets="all")
    assert found["self_attn.q_proj"] == found["fc1"] == 4 and "lm_head" not in found
    model = skeleton_of("Blenderbot", settings)
    model.model.decoder.layers = torch.nn.Sequential(*model.model.decoder.layers)
    assert targets.blocks(model) == ([], False)
    assert len(targets.target_modules(model, LoraSettings(targets=["fc1"]))) == 4
    with pytest.raises(ModelError, match=r"lora\.layers: the model has no list of blocks"):
        targets.target_modules(model, LoraSettings(layers=[0]))


def test_a_model_without_attention_says_what_there_is():
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4}
    with pytest.raises(ModelError, match=r"fits 'attention'. Name some of those that there are \(in_proj, x_proj\)"):
        targets.target_modules(skeleton_of("Mamba", settings), LoraSettings())
    assert adapted(skeleton_of("Mamba", settings), targets="all") == {"mixer.in_proj": 2, "mixer.x_proj": 2}
    with pytest.raises(ModelError, match="no linear layer 'out_proj' that PEFT adapts"):
        targets.target_modules(skeleton_of("Mamba", settings), LoraSettings(targets=["out_proj"]))


def test_what_peft_would_put_elsewhere_is_left_out():
    """In Qwen3Moe PEFT takes `gate_proj` for the experts, which are one tensor, in blocks without experts too."""
    settings = LLAMA | {"num_experts": 4, "moe_intermediate_size": 16, "mlp_only_layers": [0, 1]}
    assert adapted(skeleton_of("Qwen3Moe", settings), targets="all") == dict.fromkeys(QKVO, 4)
    with pytest.raises(ModelError, match="no linear layer 'gate_proj' that PEFT adapts"):
        targets.target_modules(skeleton_of("Qwen3Moe", settings), LoraSettings(targets=["gate_proj"]))


def test_a_refusal_of_pefts_is_told(monkeypatch):
    monkeypatch.setattr(targets, "_past_peft", lambda *_: False)
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4}
    with pytest.raises(ModelError, match=r"PEFT cannot adapt that \(.*out_proj"):
        lora.attach(skeleton_of("Mamba", settings), LoraSettings(targets=["out_proj"]))
