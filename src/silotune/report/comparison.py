"""What `silotune compare` found, as RUN/compare.json tells it.

All gains are losses of a silo alone less losses of the federated model: above 0 the federated model is better.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from silotune.errors import RunError
from silotune.federation.run import RunFolder

Finite = Annotated[float, Field(allow_inf_nan=False)]
Interval = tuple[float, float]


class Part(BaseModel):
    """A typed part of what is found; what the page does not tell is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class LabelScores(Part):
    """How well labels were chosen."""

    rows: int
    accuracy: float
    macro_f1: float
    majority: float
    """Share of the commonest label among these rows."""
    invalid: float
    """Share of rows whose greedy answer is none of the labels."""


class AnswerScores(Part):
    """How near answers are to those of the rows, means."""

    answers: int
    exact_match: float
    token_f1: float
    rouge_l: float
    chrf: float
    """0 to 100."""


class Scores(Part):
    """Task scores of a model on some rows."""

    labels: LabelScores | None = None
    answers: AnswerScores | None = None


class Everybody(Part):
    """A model on the held-out rows of all silos together."""

    model: str
    """`base`, `alone:NAME`, `pooled` or `federated`."""
    seed: int
    rows: int
    tokens: int
    loss: Finite
    """Nats a token."""
    token_accuracy: Finite
    scores: Scores | None = None


class Cell(Everybody):
    """A model on the held-out rows of a silo."""

    silo: str


class Budget(Part):
    """What was the same for all models."""

    text: str


class Gain(Part):
    """How much better off a silo is with the federated model than alone; means over seeds, nats a token."""

    silo: str
    own: Finite
    everybody: Finite


class MeanGain(Part):
    """Mean over silos."""

    own: Finite
    everybody: Finite


class GainInterval(Part):
    """How sure a gain is: intervals of 95 %."""

    silo: str | None
    """None: the mean over silos."""
    on: Literal["own", "everybody"]
    t: Interval | None = None
    """Student's t over seeds."""
    bootstrap: Interval
    """Paired bootstrap over test rows."""


class Point(Part):
    """Gains where every silo holds so many training rows."""

    rows: int
    own: Finite
    everybody: Finite


class Comparison(Part):
    """Base, each silo alone, pooled and federated: the same budget, the same tests."""

    budget: Budget
    matrix: list[Cell]
    everybody: list[Everybody]
    gains: list[Gain]
    mean_gain: MeanGain
    share_of_pooled_gain: Finite | None
    seeds: list[int]
    intervals: list[GainInterval]
    curve: list[Point] | None = None
    crossover: Finite | None = None
    """Rows at which the gain on own rows first changes its sign; None: nowhere."""
    remarks: list[str] = []


def path(run: RunFolder) -> Path:
    """Where a run's comparison lies, if it has any."""
    return run.path / "compare.json"


def read(run: RunFolder) -> Comparison | None:
    """The last comparison of a run; None if there was none.

    Raises:
        RunError: the file is damaged, or of another version.
    """
    if not path(run).exists():
        return None
    try:
        return Comparison.model_validate_json(path(run).read_bytes())
    except (OSError, ValidationError):
        raise RunError(f"{path(run)}: cannot be read. Make it again: silotune compare {run.path}") from None
