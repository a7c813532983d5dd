"""Scores of labels and of free text, on cases worked out by hand."""

import importlib.util

import numpy as np
import pytest

from silotune.errors import InputError
from silotune.training import scores
from silotune.training.scores import AnswerScores, Chosen, answer_scores, label_scores, macro_f1, score_answer


def chosen(truth, likeliest, greedy, left_out=0):
    return Chosen(*(np.array(values, np.int64) for values in (truth, likeliest, greedy)), left_out=left_out)


def test_macro_f1_is_the_mean_over_labels_that_occur():
    assert macro_f1(np.array([[2, 1], [0, 1]])) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert macro_f1(np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]])) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert macro_f1(np.array([[0, 3], [0, 0]])) == 0.0  # a label that is only ever chosen counts too
    assert macro_f1(np.eye(3, dtype=int)) == 1.0


def test_label_scores_over_several_silos():
    found = label_scores([chosen([0, 0, 1], [0, 1, 1], [0, -1, 1]), chosen([0], [0], [-1], left_out=2)], ["a", "b"])
    assert found.rows == 4 and found.accuracy == 0.75 and found.majority == 0.75 and found.invalid == 0.5
    assert found.confusion == ((2, 1), (0, 1)) and found.left_out == 2
    assert sum(map(sum, found.confusion)) == found.rows and found.labels == ("a", "b")
    assert label_scores([chosen([], [], [])], ["a", "b"]) is None


@pytest.mark.parametrize(
    ("said", "wanted", "exact", "f1"),
    [
        ("The cat, sat.", "cat sat", 1, 1), ("a dog", "the cat", 0, 0), ("", "the", 1, 1), ("x", "", 0, 0),
        ("red red blue", "red blue green", 0, 2 / 3),
    ],
)  # fmt: skip
def test_squad_scores(said, wanted, exact, f1):
    found = score_answer(said, wanted)
    assert found.exact_match == exact and found.token_f1 == pytest.approx(f1)


def test_rouge_and_chrf_come_from_their_packages():
    same = score_answer("under the old stone", "under the old stone")
    assert same == AnswerScores(1, 1.0, 1.0, 1.0, pytest.approx(100.0))
    # The longest common subsequence has 2 of 3 and 2 of 4 words.
    assert score_answer("under old wood", "under the old stone").rouge_l == pytest.approx(2 * 2 / 7)
    assert 0 < score_answer("under old wood", "under the old stone").chrf < 60


def test_answers_are_averaged():
    found = answer_scores([AnswerScores(1, 1, 1, 0.5, 80), AnswerScores(1, 0, 0.5, 0.25, 20)])
    assert found == AnswerScores(2, 0.5, 0.75, 0.375, 50) and answer_scores([]) is None


def test_a_missing_package_is_told_with_the_command(monkeypatch):
    scores.require_packages()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sacrebleu" else real(name))
    with pytest.raises(InputError, match=r"needs sacrebleu, not installed here: pip install 'silotune\[scores\]'"):
        scores.require_packages()
