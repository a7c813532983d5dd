"""Scores of a task, from what a model chose or said: labels and free text. No model is needed here.

accuracy, macro F1       of labels that were chosen by their probability (`labels`)
exact match, token F1    Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP 2016,
                         arXiv 1606.05250: without case, punctuation, English articles and surplus white space
ROUGE-L                  Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004: F-measure, by the package
                         rouge-score without stemming; it knows words of a-z and 0-9 only
chrF                     Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015: by sacrebleu
                         with its defaults, 0 to 100

Scores of free text are computed for each answer and averaged. Only figures leave these functions, no text.
"""

import importlib.util
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from silotune.errors import InputError

# ------------------------------------------------------------------------------------------------ labels


@dataclass(frozen=True)
class Chosen:
    """Labels of rows by their numbers among the candidates: (rows,) each."""

    truth: NDArray[np.int64]
    likeliest: NDArray[np.int64]
    greedy: NDArray[np.int64]
    """What greedy generation answers, -1 for no label."""
    left_out: int = 0
    """Rows with a label whose question leaves no room for an answer."""


@dataclass(frozen=True)
class LabelScores:
    """How well labels were chosen."""

    rows: int
    accuracy: float
    macro_f1: float
    """Mean F1 over the labels that rows have or were given."""
    majority: float
    """Share of the commonest label among these rows: no constant answer has a higher accuracy."""
    invalid: float
    """Share of rows whose greedy answer is none of the labels."""
    left_out: int
    """Rows with a label whose question leaves no room for an answer: they are not counted."""
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows by their own label (outer) and the chosen one (inner)."""


def label_scores(chosen: Sequence[Chosen], labels: Sequence[str]) -> LabelScores | None:
    """Scores over the rows of one or several silos; None if there are no rows."""
    truth, likeliest, greedy = (
        np.concatenate([getattr(one, name) for one in chosen]) for name in ("truth", "likeliest", "greedy")
    )
    if not len(truth):
        return None
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, likeliest), 1)
    return LabelScores(
        rows=len(truth),
        accuracy=float(np.trace(confusion) / len(truth)),
        macro_f1=macro_f1(confusion),
        majority=float(confusion.sum(1).max() / len(truth)),
        invalid=float((greedy < 0).mean()),
        left_out=sum(one.left_out for one in chosen),
        labels=tuple(labels),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Mean F1 = 2 TP / (2 TP + FP + FN) over labels that occur, from a matrix (own label, chosen label)."""
    right = np.diag(confusion)
    both = confusion.sum(0) + confusion.sum(1)
    return float((2 * right[both > 0] / both[both > 0]).mean())


# --------------------------------------------------------------------------------------------- free text


@dataclass(frozen=True)
class AnswerScores:
    """How near answers are to those of the rows: one answer, or means over several."""

    answers: int
    exact_match: float
    token_f1: float
    rouge_l: float
    chrf: float
    """0 to 100."""


PACKAGES = {"rouge_score": "rouge-score", "sacrebleu": "sacrebleu"}


def require_packages() -> None:
    """Refuse where the packages that score text are not installed.

    Raises:
        InputError: with the command that installs them.
    """
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"--answers needs {' and '.join(missing)}, not installed here: pip install 'silotune[scores]'")


def score_answer(said: str, wanted: str) -> AnswerScores:
    """Scores of one answer."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.chrf import CHRF

    one, other = squad_words(said), squad_words(wanted)
    rouge = RougeScorer(["rougeL"]).score(wanted, said)["rougeL"].fmeasure
    chrf = CHRF().sentence_score(said, [wanted]).score
    return AnswerScores(1, float(one == other), token_f1(one, other), float(rouge), float(chrf))


def answer_scores(each: Sequence[AnswerScores]) -> AnswerScores | None:
    """Means over answers; None if there are none."""
    total = sum(one.answers for one in each)
    if not total:
        return None
    names = ("exact_match", "token_f1", "rouge_l", "chrf")
    sums = (sum(getattr(one, name) * one.answers for one in each) for name in names)
    return AnswerScores(total, *(value / total for value in sums))


def squad_words(text: str) -> list[str]:
    """Words as SQuAD compares them."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def token_f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Harmonic mean of the shares of words that both have in common; 1 where both are empty."""
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))
