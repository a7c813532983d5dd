"""Several prompts in one forward pass: the answers are those of one prompt at a time."""

import numpy as np
import pytest
import torch
from tests.conftest import make_tokenizer
from tests.inference.test_generation import KINDS

from silotune.data.read.rows import Turn
from silotune.data.tokenize.tokens import encode_prompt
from silotune.errors import LengthError
from silotune.inference import batched, generation
from silotune.inference.generation import Sampling
from silotune.model import lora
from silotune.model.base import place
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings

ASKED = [
    "Where is the key?",
    "x",
    "Where is the old red door of room number seven ? Ask for the doctor.",
    "key ?",
    "we",
    "x",
]


@pytest.fixture
def resident(loud_base):
    found = tuner(str(loud_base), LoraSettings(r=2), place("cpu", "auto"))
    draw = np.random.default_rng(0)
    lora.put(found.model, {name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in found.spec.shapes})
    return found


@pytest.fixture
def prompts(resident):
    return [encode_prompt(resident.tokenizer, [Turn("user", text)]) for text in ASKED]


@pytest.mark.parametrize("sampling", [Sampling(24), Sampling(24, temperature=1.2, top_p=0.9, seed=5)])
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 4, 99])
def test_answers_are_those_of_one_prompt_at_a_time(resident, prompts, sampling, base, batch):
    alone = [generation.answer(resident.model, resident.tokenizer, prompt, sampling, base) for prompt in prompts]
    together = batched.answers(resident.model, resident.tokenizer, prompts, sampling, batch, base)
    assert together == alone and len(set(alone)) == 5


def test_a_prompt_leaves_when_its_answer_has_ended_and_the_others_go_on(resident, prompts, monkeypatch):
    """Answers of every length, decided by the number of the prompt: the rows that are left are the right ones."""
    widths = []
    whole = batched._stepper

    def watched(*arguments):
        step = whole(*arguments)
        return lambda speaking: (widths.append(len(speaking)), step(speaking))[1]

    monkeypatch.setattr(batched, "_stepper", watched)
    rooms = {tuple(prompt): 3 * number + 1 for number, prompt in enumerate(prompts)}
    monkeypatch.setattr(generation, "room", lambda _, prompt, __: rooms[tuple(prompt)])
    alone = [generation.answer(resident.model, resident.tokenizer, prompt, Sampling()) for prompt in prompts]
    assert batched.answers(resident.model, resident.tokenizer, prompts, Sampling(), 99) == alone
    assert widths == sorted(widths, reverse=True) and widths[0] == len(prompts) and widths[-1] < 3


@pytest.mark.parametrize("kind", [*KINDS, "Gemma3Text", "OPT", "GPTNeoX"])
def test_models_of_other_kinds_say_together_what_they_say_alone(kind):
    import transformers

    tokenizer = make_tokenizer()
    sizes = {} if {"n_layer"} <= KINDS.get(kind, {}).keys() else {"hidden_size": 32, "num_hidden_layers": 2}
    if kind not in KINDS:
        sizes |= {"num_attention_heads": 4, "intermediate_size": 48, "ffn_dim": 48, "head_dim": 8, "sliding_window": 4,
                  "word_embed_proj_dim": 32, "num_key_value_heads": 2}  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), pad_token_id=0, initializer_range=0.5, **sizes, **KINDS.get(kind, {})
    )
    config.use_cache = False
    model = lora.attach(transformers.AutoModelForCausalLM.from_config(config).eval(), LoraSettings(r=2, targets="all"))
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14], [15, 16, 17, 18, 19, 20, 21]]
    assert batched.fills(model) == (kind not in ("Mamba", "Rwkv", "XLNet", "Jamba"))
    sampling = Sampling(8, temperature=0.7, seed=2)
    alone = [generation.answer(model, tokenizer, prompt, sampling) for prompt in prompts]
    assert batched.answers(model, tokenizer, prompts, sampling, 4) == alone and len(set(alone)) > 1


def test_a_prompt_that_leaves_no_room_is_refused(resident, prompts):
    with pytest.raises(LengthError, match="the prompt has 512 tokens, and the model reads 512 with its answer"):
        batched.answers(resident.model, resident.tokenizer, [*prompts, [5] * 512], Sampling(), 4)
