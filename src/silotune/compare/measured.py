"""A model on a silo's held-out rows: the loss of each row, the labels that it chooses, how its answers score.

Kept in the model's folder, so that nothing is computed twice. Figures only: no row's text.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from silotune import atomic
from silotune.compare.baselines import Model, put
from silotune.compare.context import ComparisonContext
from silotune.data.silos.corpus import chosen_rows, counted_rows, silo_rows
from silotune.data.tokenize.split import Split
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.model.tuner import Tuner
from silotune.training.scores import AnswerScores, Chosen

if TYPE_CHECKING:  # it loads torch
    from silotune.training.forward import ForwardPlan
    from silotune.training.labels import Candidates

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measured:
    """The scores of one model on the held-out rows of one silo."""

    loss: NDArray[np.float64]
    """(rows,): sum over a row's loss tokens, in nats."""
    tokens: NDArray[np.int64]
    """(rows,): those that carry loss."""
    correct: NDArray[np.int64]
    """(rows,): those that were the model's first choice."""
    labels: Chosen | None = None
    answers: tuple[AnswerScores, ...] = ()


def measure(
    context: ComparisonContext, model: Model, silo: str, offered: "Candidates | None" = None, answers: int = 0
) -> Measured:
    """Score a model on a silo's held-out rows, or recall what it scored.

    Args:
        context: of the comparison.
        model: to score.
        silo: whose rows.
        offered: labels to choose from; None: none are chosen.
        answers: questions to answer in text.

    Raises:
        Interrupted: somebody has asked to stop; what is done is kept.
    """
    context.require_going()
    test = context.digest(silo, "test")
    rows = _kept(model.folder / f"rows-{test}.json", lambda: _rows(context, model, silo))
    return Measured(
        np.array(rows["loss"], np.float64),
        np.array(rows["tokens"], np.int64),
        np.array(rows["correct"], np.int64),
        _labels(context, model, silo, offered) if offered else None,
        _answers(context, model, silo, answers) if answers else (),
    )


def labels_of(tokenizer: Tokenizer, splits: Sequence[Split]) -> "tuple[Candidates | None, list[str]]":
    """The labels that an answer can be, of rows to train and to test on; or none, and what is to be said of it."""
    if not any(split.store.described.labels for split in splits):
        return None, []
    from silotune.training.labels import candidates

    found = candidates(tokenizer, splits)
    if isinstance(found, str):
        return None, [f"Labels are not scored: {found}."] if found else []
    return found, []


def _kept(file: Path, compute: Callable[[], Result]) -> Result:
    """What was computed and written to a file, in the types of JSON."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(file, json.dumps(compute()))
    found: Result = json.loads(file.read_text(encoding="utf-8"))
    return found


def _rows(context: ComparisonContext, model: Model, silo: str) -> dict[str, list[float]]:
    put(context, model)
    found = score_rows(context.resident, context.forward_plan, context.corpus(silo).test, context.require_going)
    return {name: getattr(found, name).tolist() for name in ("loss", "tokens", "correct")}


def score_rows(
    tuner: Tuner, forward_plan: "ForwardPlan", split: Split, report: Callable[[], None] = lambda: None
) -> Measured:
    """Score the adapter that lies in the model on each row of a split; a long plain text is several examples."""
    from silotune.training.evaluation import score_each

    each = score_each(tuner, forward_plan, split, report)
    names, place = np.unique(split.row_of, return_inverse=True)
    loss, tokens, correct = (np.bincount(place, one, len(names)) for one in (each.loss, each.tokens, each.correct))
    return Measured(loss.astype(np.float64), tokens.astype(np.int64), correct.astype(np.int64))


class _LabelFile(TypedDict):
    """`Chosen` as JSON."""

    truth: list[int]
    likeliest: list[int]
    greedy: list[int]
    left_out: int


def _labels(context: ComparisonContext, model: Model, silo: str, offered: "Candidates") -> Chosen:
    from silotune.training.labels import choose

    def compute() -> _LabelFile:
        put(context, model)
        found = choose(context.resident, context.forward_plan, context.corpus(silo).test, offered,
                       context.recipe.data.max_length, context.require_going)  # fmt: skip
        return {"truth": found.truth.tolist(), "likeliest": found.likeliest.tolist(), "greedy": found.greedy.tolist(),
                "left_out": found.left_out}  # fmt: skip

    key = _key(context.digest(silo, "test"), context.recipe.data.max_length, offered.labels, offered.tokens)
    told = _kept(model.folder / f"labels-{key}.json", compute)
    truth, likeliest, greedy = (np.array(one, np.int64) for one in (told["truth"], told["likeliest"], told["greedy"]))
    return Chosen(truth, likeliest, greedy, told["left_out"])


class _AnswerFile(TypedDict):
    """`AnswerScores` as JSON."""

    answers: int
    exact_match: float
    token_f1: float
    rouge_l: float
    chrf: float


def _answers(context: ComparisonContext, model: Model, silo: str, count: int) -> tuple[AnswerScores, ...]:
    from silotune.inference import answers

    def compute() -> dict[str, list[_AnswerFile]]:
        put(context, model)
        test, data = context.corpus(silo).test, context.recipe.data
        config = context.silos[silo]
        split = chosen_rows(
            config.files, *counted_rows(config.files, config.reading), data.holdout, context.recipe.seed
        )
        (chosen,) = answers.drawn([test], count, context.recipe.seed, silo)
        rows = silo_rows(config.files, config.reading, split, "test")
        found = answers.answer_each(context.resident, test, chosen, rows, context.require_going)
        return {"answers": [cast(_AnswerFile, asdict(one)) for one in found]}

    key = _key(context.digest(silo, "test"), silo, context.recipe.seed, count, answers.MOST_TOKENS)
    told = _kept(model.folder / f"answers-{key}.json", compute)
    return tuple(AnswerScores(**one) for one in told["answers"])


def _key(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
