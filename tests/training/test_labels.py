"""Choosing labels by their probability: against the model's own forward pass and against generation."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.conftest import TEMPLATE, make_tokenizer
from tests.data.helpers import split_of

from silotune.data.read.rows import Row, Turn
from silotune.data.tokenize.tokens import encode_prompt
from silotune.inference import generation
from silotune.inference.generation import Sampling
from silotune.model import lora
from silotune.model.adapter import initial_adapter
from silotune.model.base import place
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings
from silotune.training import forward
from silotune.training.forward import forward_plan_of
from silotune.training.kept import Keep
from silotune.training.labels import Candidates, _apart, candidates, choose, log_probabilities

QUESTION = "Where is the key of room {} ?"


def row(number, label, answer=None):
    turns = (Turn("user", QUESTION.format("red " * (number % 3) + "lamp")), Turn("assistant", answer or label))
    return Row(turns, number + 1, label)


@pytest.fixture
def resident(tiny_base):
    torch.set_num_threads(1)
    found = tuner(str(tiny_base), LoraSettings(r=2), place("cpu", "auto"))
    generator = torch.Generator().manual_seed(1)
    start = initial_adapter(found.spec, 0)
    lora.put(found.model, {name: value + 0.3 * torch.randn(value.shape, generator=generator).numpy() for name, value in start.items()})  # fmt: skip
    return found


@pytest.fixture
def forward_plan(resident):
    return forward_plan_of(resident.model, "cpu", 0.0, Keep())


def written(tokenizer, label, answer):
    """Tokens of an answer in training, from the row itself."""
    (example,) = split_of(tokenizer, [row(0, label, answer)], 200)
    return tuple(example.ids[example.last_answer :].tolist())


def test_labels_are_the_very_tokens_of_training_with_the_end_of_the_turn(resident):
    rows = [row(i, label) for i, label in enumerate(["north lamp", "south", "north lamp", "river"])]
    found = candidates(resident.tokenizer, [split_of(resident.tokenizer, rows, 200)])
    assert found.labels == ("north lamp", "river", "south")
    assert found.tokens == tuple(written(resident.tokenizer, label, label) for label in found.labels)
    assert {tokens[-1] for tokens in found.tokens} == {resident.tokenizer.eos_token_id}


def test_blanks_that_a_template_writes_about_an_answer_belong_to_it():
    """As Llama 2 does: a blank before the content, and one between it and the end of the turn."""
    tokenizer = make_tokenizer(TEMPLATE.replace("+ '<|im_end|>'", "+ ' <|im_end|>'"))
    labels = ["north lamp", "south", "river"]
    found = candidates(tokenizer, [split_of(tokenizer, [row(i, label) for i, label in enumerate(labels)], 200)])
    assert found.tokens == tuple(written(tokenizer, label, label) for label in found.labels)
    assert all(tokens[-1] == tokenizer.eos_token_id for tokens in found.tokens)


def test_answers_may_write_a_label_otherwise_and_go_on(resident):
    rows = [row(0, "lies_under", "Lies under. A stone"), row(1, "no", "No. Ask the doctor"), row(2, "no", "No.")]
    found = candidates(resident.tokenizer, [split_of(resident.tokenizer, rows, 200)])
    decoded = [resident.tokenizer.decode(tokens) for tokens in found.tokens]
    assert found.labels == ("lies_under", "no") and decoded == ["Lies under", "No"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row(0, "north", "under a stone"), row(1, "south", "in the garden")], "do not begin with the labels"),
        ([row(0, "no", "nothing"), row(1, "yes", "yesterday")], "do not begin with the labels"),
        ([row(0, "a_b", "a b"), row(1, "a b", "a b")], "written alike"),
        ([row(0, "north"), row(1, "north")], "one label"),
        ([row(0, None, "north"), row(1, None, "south")], ""),
        ([row(i, f"room {i}") for i in range(201)], "201 different ones, more than 200"),
    ],
)
def test_labels_that_cannot_be_chosen_from(resident, rows, says):
    found = candidates(resident.tokenizer, [split_of(resident.tokenizer, rows, 200)])
    assert isinstance(found, str) and says in found and bool(found) == bool(says)


def brute_force(resident, question, tokens):
    """Log-probability of an answer, token by token, each from a forward pass over all that is before it."""
    total, greedy, ids = 0.0, True, list(question)
    for token in tokens:
        with torch.no_grad():
            logits = resident.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        greedy = greedy and int(logits.argmax()) == token
        ids.append(token)
    return total, greedy


def test_log_probabilities_are_those_of_the_plain_forward_pass(resident, forward_plan):
    labels = ["north", "south", "north lamp", "the old door beside the river", "seven"]
    rows = [row(i, label) for i, label in enumerate(labels)]
    split = split_of(resident.tokenizer, rows, 200)
    offered = candidates(resident.tokenizer, [split])
    assert forward_plan.start  # the question is computed once for all of them
    for example in split:
        question = example.ids[: example.last_answer]
        expected = [brute_force(resident, question, tokens) for tokens in offered.tokens]
        logs, first = log_probabilities(resident, forward_plan, question, offered)
        assert logs == pytest.approx([log for log, _ in expected], rel=1e-4)
        assert first.tolist() == [greedy for _, greedy in expected]
        slow = dataclasses.replace(forward_plan, start=False, head=False)
        assert log_probabilities(resident, slow, question, offered)[0] == pytest.approx(logs, rel=1e-4)


def test_many_labels_go_in_several_passes(resident, forward_plan, monkeypatch):
    from silotune.training import labels

    rows = [row(i, label) for i, label in enumerate(["north", "south", "seven", "river", "lamp"])]
    split = split_of(resident.tokenizer, rows, 200)
    offered = candidates(resident.tokenizer, [split])
    question = split[0].ids[: split[0].last_answer]
    expected = log_probabilities(resident, forward_plan, question, offered)[0]
    monkeypatch.setattr(labels, "TOKENS", 2 * (len(question) + 4))
    assert log_probabilities(resident, forward_plan, question, offered)[0] == pytest.approx(expected, rel=1e-5)


def test_a_label_that_begins_another_counts_only_where_the_other_does_not_follow():
    logs = np.log([0.5, 0.2, 0.1, 0.3])
    tokens = [(1,), (1, 2), (1, 2, 3), (4,)]
    whole, greedy = _apart(logs, np.array([True, True, False, False]), tokens)
    assert np.exp(whole) == pytest.approx([0.3, 0.1, 0.1, 0.3]) and greedy.tolist() == [False, True, False, False]


def test_the_greedy_label_is_what_generation_says(resident, forward_plan):
    """Among the candidates are the model's own greedy answers to some questions, and so to these alone."""
    questions = [row(number, "x") for number in range(3)]
    prompts = [encode_prompt(resident.tokenizer, question.turns[:-1]) for question in questions]
    said = []
    for prompt in prompts:
        step, ids = generation._stepper(resident.model, prompt), []
        with torch.no_grad():
            for _ in range(3):
                ids.append(int(step(ids).argmax()))
        said.append(tuple(ids))
    offered = Candidates(("greedy", "other"), (said[0], (5, 6, 7)))
    for prompt, ids in zip(prompts, said, strict=True):
        _, first = log_probabilities(resident, forward_plan, np.array(prompt, np.int32), offered)
        assert first.tolist() == [ids == said[0], False]
    text = generation.answer(resident.model, resident.tokenizer, prompts[0], Sampling(max_tokens=3))
    assert text == resident.tokenizer.decode(said[0], skip_special_tokens=True).strip()


def test_choosing_over_a_split(resident, forward_plan):
    rows = [row(i, label) for i, label in enumerate(["north", "south", None, "seven"])]
    rows[2] = row(2, None, "Ask for the key")
    split = split_of(resident.tokenizer, rows, 200)
    offered = candidates(resident.tokenizer, [split])
    calls = []
    found = choose(resident, forward_plan, split, offered, 200, lambda: calls.append(1))
    assert found.truth.tolist() == [offered.labels.index(label) for label in ("north", "south", "seven")]
    assert len(calls) == 3 and found.left_out == 0
    logs = [
        log_probabilities(resident, forward_plan, split[i].ids[: split[i].last_answer], offered)[0] for i in (0, 1, 3)
    ]
    assert found.likeliest.tolist() == [int(np.argmax(one)) for one in logs]
    longest = max(len(split[i].ids) for i in range(4))
    assert choose(resident, forward_plan, split, offered, longest - 5, lambda: None).left_out > 0


def test_a_start_is_shared_for_an_adapter_that_drops_out_in_training(resident, monkeypatch):
    forward_plan = forward_plan_of(resident.model, "cpu", 0.1, Keep())
    assert not forward_plan.start
    split = split_of(resident.tokenizer, [row(i, label) for i, label in enumerate(["north", "south"])], 200)
    offered = candidates(resident.tokenizer, [split])
    lengths = []
    real = forward._hidden_after_start
    monkeypatch.setattr(forward, "_hidden_after_start", lambda *given: lengths.append(1) or real(*given))
    choose(resident, forward_plan, split, offered, 200, lambda: None)
    assert len(lengths) > len(split)  # one to try it, one a question


def test_what_a_template_opens_every_answer_with_is_no_part_of_a_label():
    tokenizer = make_tokenizer(
        TEMPLATE.replace(
            "+ message['content']", "+ ('Ask answer. ' if message['role'] == 'assistant' else '') + message['content']"
        )
    )
    labels = ["north lamp", "south", "river"]
    split = split_of(tokenizer, [row(i, label) for i, label in enumerate(labels)], 200)
    found = candidates(tokenizer, [split])
    assert found.labels == ("north lamp", "river", "south")
    assert [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in found.tokens] == list(found.labels)
    assert tokenizer.decode(split[0].ids[split[0].last_answer :]).startswith("Ask answer. north lamp")


def test_the_answers_before_the_last_one_choose_no_label(resident, forward_plan):
    turns = (Turn("user", "red ?"), Turn("assistant", "blue"), Turn("user", "lamp ?"), Turn("assistant", "north"))
    later = TEMPLATE.replace("+ '<|im_end|>' +", "+ ('<|im_end|>' if loop.last or message['role'] == 'user' else '') +")
    tokenizer = make_tokenizer(later)
    split = split_of(tokenizer, [Row(turns, 1, "north"), row(1, "south")], 200)
    assert len(split) == 3 and split.questions.tolist() == [1, 2]
    offered = candidates(tokenizer, [split])
    assert offered.labels == ("north", "south")
    chosen = choose(resident, forward_plan, split, offered, 200, lambda: None)
    assert chosen.truth.tolist() == [0, 1] and chosen.left_out == 0
