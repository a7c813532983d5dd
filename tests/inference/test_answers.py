"""Answers to held-out questions: which are drawn, and that they are what generation says after training's prompt."""

import pytest
import torch
from tests.data.helpers import split_of

from silotune.data.read.rows import Row, Turn
from silotune.data.tokenize.tokens import encode_prompt
from silotune.inference import answers, generation
from silotune.inference.generation import Sampling
from silotune.model.base import place
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings
from silotune.training.scores import score_answer


@pytest.fixture
def resident(loud_base):
    torch.set_num_threads(1)
    return tuner(str(loud_base), LoraSettings(r=2), place("cpu", "auto"))


def chat(number):
    question = f"Where is the {'red ' * (number % 4)}key of room {number} ?"
    return Row((Turn("user", question), Turn("assistant", "It lies under a stone")), number + 1)


def test_questions_are_drawn_over_all_splits_and_never_of_plain_texts(resident):
    plain = Row((), 9, text="under the old stone")
    first = split_of(resident.tokenizer, [chat(0), plain, chat(1)], 200)
    second = split_of(resident.tokenizer, [chat(2)], 200)
    assert answers.drawn([first, second], 9, 0, "a") == [[0, 2], [0]]
    drawn = [answers.drawn([first, second], 2, seed, "a") for seed in range(20)]
    assert all(sum(map(len, one)) == 2 for one in drawn) and len({str(one) for one in drawn}) == 3
    assert drawn[0] == answers.drawn([first, second], 2, 0, "a")


def test_each_is_what_generation_says_after_the_prompt_of_training(resident, monkeypatch):
    monkeypatch.setattr(answers, "MOST_TOKENS", 6)
    monkeypatch.setattr(answers, "TOGETHER", 2)
    rows = [chat(number) for number in range(6)]
    split = split_of(resident.tokenizer, rows, 200)
    calls = []
    found = answers.answer_each(resident, split, [0, 2, 3, 5], enumerate(rows), lambda: calls.append(1))
    said = []
    for number in (0, 2, 3, 5):
        prompt = encode_prompt(resident.tokenizer, rows[number].turns[:-1])
        said.append(generation.answer(resident.model, resident.tokenizer, prompt, Sampling(max_tokens=6)))
    assert found == [score_answer(one, "It lies under a stone") for one in said]
    assert len(set(said)) == 4 and len(calls) == 2
