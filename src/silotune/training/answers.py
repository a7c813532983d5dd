"""Greedy answers to held-out questions, scored against the answers that the rows have (`scores`)."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from silotune.data.rows import Row
from silotune.data.seeds import derive
from silotune.data.store import Split
from silotune.model import batched
from silotune.model.generation import Sampling
from silotune.model.tuner import Tuner
from silotune.training.scores import AnswerScores, score_answer

MOST_TOKENS = 256
"""Of a generated answer."""
TOGETHER = 8
"""Questions in a forward pass."""


def drawn(splits: Sequence[Split], count: int, seed: int, silo: str) -> list[list[int]]:
    """Numbers of the examples of each split of a silo to answer, rising: `count` in all, drawn from its questions."""
    asked = [
        (number, index)
        for number, split in enumerate(splits)
        for index in range(len(split))
        if split[index].last_answer
    ]
    order = np.random.default_rng(derive(seed, "answers", silo)).permutation(len(asked))
    chosen = sorted(asked[place] for place in order[:count])
    return [[index for part, index in chosen if part == number] for number in range(len(splits))]


def answer_each(
    tuner: Tuner, split: Split, chosen: Sequence[int], rows: Iterable[tuple[int, Row]], report: Callable[[], None]
) -> list[AnswerScores]:
    """Answer some of a split's questions greedily with the adapter that lies in the model.

    Args:
        tuner: the resident model.
        split: what the questions are taken from, in the very tokens of training.
        chosen: numbers of its examples.
        rows: the split's rows in text by their number in the store, for the answers to hold against.
        report: called after each batch of answers; may raise to stop.

    Returns:
        Scores of each answer.
    """
    row_of = split.row_of
    examples = {int(row_of[index]): split[index] for index in chosen}
    asked = [(examples[number], row.turns[-1].content) for number, row in rows if number in examples]
    sampling, found = Sampling(max_tokens=MOST_TOKENS), []
    for start in range(0, len(asked), TOGETHER):
        batch = asked[start : start + TOGETHER]
        questions = [example.ids[: example.last_answer].tolist() for example, _ in batch]
        said = batched.answers(tuner.model, tuner.tokenizer, questions, sampling, TOGETHER)
        found += [score_answer(one, wanted) for one, (_, wanted) in zip(said, batch, strict=True)]
        report()
    return found
