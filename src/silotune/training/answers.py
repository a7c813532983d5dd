"""Greedy answers to held-out questions, scored against the answers that the rows have (`scores`)."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from silotune.data.rows import Row
from silotune.data.seeds import derive
from silotune.data.store import Split
from silotune.model import generation
from silotune.model.generation import Sampling
from silotune.model.tuner import Tuner
from silotune.training.scores import AnswerScores, score_answer

MOST_TOKENS = 256
"""Of a generated answer."""


def drawn(split: Split, count: int, seed: int, silo: str) -> list[int]:
    """Numbers of the examples to answer: `count` drawn from those that have a question, rising."""
    asked = [index for index in range(len(split)) if split[index].last_answer]
    order = np.random.default_rng(derive(seed, "answers", silo)).permutation(len(asked))
    return sorted(asked[place] for place in order[:count])


def answer_each(
    tuner: Tuner, split: Split, chosen: Sequence[int], rows: Iterable[tuple[int, Row]], report: Callable[[], None]
) -> list[AnswerScores]:
    """Answer some of a split's questions greedily with the adapter that lies in the model.

    Args:
        tuner: the resident model.
        split: what the questions are taken from, in the very tokens of training.
        chosen: numbers of its examples.
        rows: the split's rows in text by their number in the store, for the answers to hold against.
        report: called after each answer; may raise to stop.

    Returns:
        Scores of each answer.
    """
    wanted = {int(split.row_of[index]): index for index in chosen}
    found = []
    for number, row in rows:
        if number in wanted:
            example = split[wanted[number]]
            question = example.ids[: example.last_answer].tolist()
            said = generation.answer(tuner.model, tuner.tokenizer, question, Sampling(max_tokens=MOST_TOKENS))
            found.append(score_answer(said, row.turns[-1].content))
            report()
    return found
