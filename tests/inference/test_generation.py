"""Generation: greedy equals argmax by hand, seeds repeat, the end of the turn stops, pieces join to the whole."""

import pytest
import torch

from silotune.data.read.rows import Turn
from silotune.data.tokenize.tokens import encode_prompt
from silotune.errors import InputError, LengthError
from silotune.inference import generation
from silotune.inference.generation import Sampling
from silotune.model import lora
from silotune.model.adapter import initial_adapter
from silotune.model.base import place
from silotune.model.targets import longest_input
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings


@pytest.fixture
def resident(tiny_base):
    found = tuner(str(tiny_base), LoraSettings(r=2), place("cpu", "auto"))
    lora.put(found.model, {name: value + 0.3 for name, value in initial_adapter(found.spec, 0).items()})
    return found


def ask(resident, base=False, **sampling):
    prompt = encode_prompt(resident.tokenizer, [Turn("user", "Where is the key?")])
    return "".join(generation.stream(resident.model, resident.tokenizer, prompt, Sampling(**sampling), base))


def test_greedy_is_the_likeliest_token_of_a_full_forward_pass(resident):
    for base in (False, True):
        ids = encode_prompt(resident.tokenizer, [Turn("user", "Where is the key?")])
        said = []
        for _ in range(6):
            context = resident.model.disable_adapter() if base else torch.no_grad()
            with context, torch.no_grad():
                token = int(resident.model(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax())
            if token == resident.tokenizer.eos_token_id:
                break
            said.append(token)
        expected = resident.tokenizer.decode(said, skip_special_tokens=True)
        assert ask(resident, base, max_tokens=6).strip("\ufffd") == expected.strip("\ufffd")


def test_the_base_is_another_voice_and_the_adapter_comes_back(resident):
    tuned = ask(resident, max_tokens=8)
    assert ask(resident, True, max_tokens=8) != tuned == ask(resident, max_tokens=8)


def test_the_same_seed_says_the_same(resident):
    said = [ask(resident, max_tokens=8, temperature=1.5, seed=seed) for seed in (1, 1, 2, 3)]
    assert said[0] == said[1] and len(set(said)) > 1
    assert ask(resident, max_tokens=8, temperature=1.5, top_p=1e-6, seed=5) == ask(resident, max_tokens=8)


def test_the_end_of_the_turn_stops(resident, monkeypatch):
    tokens = iter([10, 11, resident.tokenizer.eos_token_id, 12])
    monkeypatch.setattr(generation, "_choose", lambda *_: next(tokens))
    assert ask(resident) == resident.tokenizer.decode([10, 11])


def test_a_character_of_several_tokens_comes_whole(resident, monkeypatch):
    ids = resident.tokenizer("a\U0001f600b")["input_ids"]
    tokens = iter([*ids, resident.tokenizer.eos_token_id])
    monkeypatch.setattr(generation, "_choose", lambda *_: next(tokens))
    prompt = encode_prompt(resident.tokenizer, [Turn("user", "x")])
    pieces = list(generation.stream(resident.model, resident.tokenizer, prompt, Sampling()))
    assert "".join(pieces) == "a\U0001f600b" and all("\ufffd" not in piece for piece in pieces)


KINDS = {
    "Mamba": {"state_size": 4},
    "Rwkv": {"attention_hidden_size": 32, "intermediate_size": 48},
    "XLNet": {"n_layer": 2, "n_head": 4, "d_model": 32, "d_inner": 48},
    "GPT2": {"n_layer": 2, "n_head": 4, "n_embd": 32},
    "Jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4,
              "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_keep_their_state_elsewhere_say_what_a_full_pass_says(kind):
    import transformers
    from tests.conftest import make_tokenizer

    tokenizer = make_tokenizer()
    sizes = {} if {"n_layer"} <= KINDS[kind].keys() else {"hidden_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), pad_token_id=0, **sizes, **KINDS[kind])
    config.use_cache = False
    model = lora.attach(transformers.AutoModelForCausalLM.from_config(config).eval(), LoraSettings(r=2, targets="all"))
    prompt, said = [5, 6, 7, 8], []
    step = generation._stepper(model, prompt)
    with torch.inference_mode():
        for _ in range(5):
            expected = model(input_ids=torch.tensor([prompt + said])).logits[0, -1]
            assert torch.allclose(step(said), expected, rtol=1e-4, atol=1e-5)
            said.append(int(expected.argmax()))
    assert isinstance("".join(generation.stream(model, tokenizer, prompt, Sampling(max_tokens=3))), str)


def test_between_two_pieces_the_model_is_anybodys(resident):
    """Neither the adapter's switch nor torch's inference mode of a half-read answer is felt outside."""
    tuned = ask(resident, max_tokens=8)
    prompt = encode_prompt(resident.tokenizer, [Turn("user", "Where is the key?")])
    half = generation.stream(resident.model, resident.tokenizer, prompt, Sampling(max_tokens=8), base=True)
    first = next(half)
    assert not torch.is_inference_mode_enabled()
    assert ask(resident, max_tokens=8) == tuned
    assert first + "".join(half) == ask(resident, True, max_tokens=8)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": float("nan")}, "temperature is nan; give a finite number"),
        ({"temperature": float("inf")}, "temperature is inf; give a finite number"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": float("nan")}, "top_p is nan; give a share"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": 2**64}, "seed is 18446744073709551616; give a number from 0"),
        ({"seed": -1}, "seed is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop": ("a", "")}, "stop has an empty text"),
    ],
)
def test_sampling_that_cannot_be_meant_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        Sampling(**wrong)


def test_the_ends_of_what_may_be_asked_for(resident):
    greedy = ask(resident, max_tokens=8)
    for temperature in (1e-45, 1e-10, 9e-4):
        assert ask(resident, max_tokens=8, temperature=temperature) == greedy
    assert ask(resident, max_tokens=8, temperature=1e-3, seed=2**64 - 1) == greedy
    assert ask(resident, max_tokens=8, temperature=1.0, top_p=0.0) == greedy
    assert ask(resident, max_tokens=2, temperature=1e300)


def said(resident, monkeypatch, text, **sampling):
    """The pieces of an answer in which the model says this text and then ends its turn."""
    ids = resident.tokenizer(text)["input_ids"]
    tokens = iter([*ids, resident.tokenizer.eos_token_id])
    monkeypatch.setattr(generation, "_choose", lambda *_: next(tokens))
    prompt = encode_prompt(resident.tokenizer, [Turn("user", "x")])
    return list(generation.pieces(resident.model, resident.tokenizer, prompt, Sampling(**sampling))), len(ids)


def test_pieces_count_tokens_and_say_why_the_answer_ended(resident, monkeypatch):
    pieces, count = said(resident, monkeypatch, "under the stone")
    assert [piece.tokens for piece in pieces] == list(range(1, count + 2))
    assert [piece.finish for piece in pieces] == [None] * count + ["stop"]
    pieces, _ = said(resident, monkeypatch, "under the stone", max_tokens=2)
    assert [piece.finish for piece in pieces] == [None, "length"]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("stone",), "under the "),
        (("er the s",), "und"),
        (("zzz", " the", "under the"), ""),
        (("stones", "x"), "under the stone"),
        (("e",), "und"),
    ],
)
def test_a_stop_text_ends_the_answer_before_it_and_nothing_of_it_is_shown(resident, monkeypatch, stop, expected):
    pieces, count = said(resident, monkeypatch, "under the stone", stop=stop)
    assert "".join(piece.text for piece in pieces) == expected
    assert pieces[-1].finish == "stop" and all(piece.finish is None for piece in pieces[:-1])
    assert pieces[-1].tokens <= count + 1


def test_an_answer_ends_where_the_model_can_read_no_further(resident):
    assert longest_input(resident.model.get_base_model()) == 512
    pieces = list(generation.pieces(resident.model, resident.tokenizer, [5] * 510, Sampling()))
    assert len(pieces) <= 2 and pieces[-1].finish
    with pytest.raises(LengthError, match="Shorten the prompt"):
        generation.pieces(resident.model, resident.tokenizer, [5] * 512, Sampling())


def test_what_ends_an_answer_is_known_from_template_tokenizer_and_settings(tiny_base):
    from tests.conftest import TEMPLATE, make_tokenizer
    from transformers import GenerationConfig

    tokenizer = make_tokenizer(TEMPLATE.replace("<|im_end|>", "<|endoftext|>"))
    turn, sequence = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    found = generation.stops_of(GenerationConfig(eos_token_id=[9, 11]), tokenizer)
    assert found.tokens == tuple(sorted({turn, sequence, 9, 11})) and found.texts == ()
    assert generation.stops_of(GenerationConfig(), tokenizer).tokens == tuple(sorted({turn, sequence}))


def test_the_templates_own_end_of_turn_stops(resident, monkeypatch):
    end = resident.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    monkeypatch.setattr(
        resident.tokenizer, "chat_template", resident.tokenizer.chat_template.replace("<|im_end|>", "<|endoftext|>")
    )
    tokens = iter([10, 11, end, 12])
    monkeypatch.setattr(generation, "_choose", lambda *_: next(tokens))
    assert ask(resident) == resident.tokenizer.decode([10, 11])


def test_an_end_of_turn_in_words_stops_before_it(resident, monkeypatch):
    template = "{% for m in messages %}{{ m.content + ' old door' }}{% endfor %}"
    monkeypatch.setattr(resident.tokenizer, "chat_template", template)
    said = resident.tokenizer("red blue old door green", add_special_tokens=False)["input_ids"]
    tokens = iter(said)
    monkeypatch.setattr(generation, "_choose", lambda *_: next(tokens))
    assert ask(resident).strip() == "red blue"
