"""Greedy answers to held-out questions, scored against the answers that the rows have (`scores`)."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from silotune.data.read.rows import Row
from silotune.data.seeds import derive
from silotune.data.tokenize.rendering import learned
from silotune.data.tokenize.split import Split
from silotune.data.tokenize.tokens import opening_tokens, question_of
from silotune.inference import batched
from silotune.inference.generation import Sampling
from silotune.model.tuner import Tuner
from silotune.training.scores import AnswerScores, score_answer

MOST_TOKENS = 256
"""Most tokens of a generated answer."""
TOGETHER = 8
"""Questions in a forward pass."""


def drawn(splits: Sequence[Split], count: int, seed: int, silo: str) -> list[list[int]]:
    """Numbers of the examples of each split of a silo to answer, rising: `count` in all, drawn from its questions."""
    asked = [(number, index) for number, split in enumerate(splits) for index in split.questions.tolist()]
    order = np.random.default_rng(derive(seed, "answers", silo)).permutation(len(asked))
    chosen = sorted(asked[place] for place in order[:count])
    return [[index for part, index in chosen if part == number] for number in range(len(splits))]


def answer_each(
    tuner: Tuner, split: Split, chosen: Sequence[int], rows: Iterable[tuple[int, Row]], report: Callable[[], None]
) -> list[AnswerScores]:
    """Answer some of a split's questions greedily with the adapter that lies in the model.

    Args:
        tuner: the resident model.
        split: what the questions are taken from.
        chosen: numbers of its examples.
        rows: the split's rows in text by their number in the store, for the answers to hold against.
        report: called after each batch of answers; may raise to stop.

    Returns:
        Scores of each answer.
    """
    store, tokenizer = split.store, tuner.tokenizer
    wanted = set(split.row_of[list(chosen)].tolist())
    asked = [row for number, row in rows if number in wanted]
    opening = tokenizer.decode(opening_tokens(tokenizer), skip_special_tokens=True).strip()
    sampling, found = Sampling(max_tokens=MOST_TOKENS), []
    for start in range(0, len(asked), TOGETHER):
        batch = asked[start : start + TOGETHER]
        questions = [question_of(tokenizer, row, store.max_length, store.options) for row in batch]
        for row, text in zip(
            batch, batched.answers(tuner.model, tokenizer, questions, sampling, TOGETHER), strict=True
        ):
            answer = learned(row.turns, store.options.loss_on == "last")[-1]
            found.append(score_answer(text.removeprefix(opening).strip(), answer.content or answer.tool_calls or ""))
        report()
    return found
