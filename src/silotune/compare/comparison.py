"""What `silotune compare` finds: the object that it prints with `--json` and leaves in RUN/compare.json.

All gains are losses of a silo alone less losses of the federated model: above 0 the federated model is better.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from silotune import atomic
from silotune.compare.statistics import Interval
from silotune.errors import RunError
from silotune.federation.run import RunFolder
from silotune.training.scores import AnswerScores, LabelScores

SAME_BUDGET = (
    "Same start, batch, learning rate and schedule for all; the optimizer starts anew each round. Each silo alone "
    "takes as many rounds, and so optimizer steps, as it took part in."
)
TOKENS_BESIDE = "Beside each model stand the tokens that were computed in its training."

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Part(BaseModel):
    """A typed part of what is found: nothing unknown in it, and nothing changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Scores(Part):
    """Task scores of a model on some rows."""

    labels: LabelScores | None = None
    """Scores of the rows whose answers are labels."""
    answers: AnswerScores | None = None
    """Scores of some questions, answered greedily."""


class Cell(Part):
    """A model on the held-out rows of a silo."""

    model: str
    """`base`, `alone:NAME`, `pooled` or `federated`."""
    silo: str
    seed: int
    """Seed of the training; for the base, that of the run."""
    rows: int
    """Held-out rows."""
    tokens: int
    """Number of answer tokens: those that carry loss."""
    loss: Finite
    """Mean over these tokens, in nats."""
    token_accuracy: Finite
    """Share of these tokens that were the model's first choice."""
    scores: Scores | None = None


class Everybody(Part):
    """A model on the held-out rows of all silos together, each token counting the same."""

    model: str
    seed: int
    rows: int
    tokens: int
    loss: Finite
    token_accuracy: Finite
    scores: Scores | None = None


class Trained(Part):
    """What went into a model."""

    model: str
    seed: int
    train_rows: int
    rounds: int
    steps: int
    """Optimizer steps over all rounds and silos."""
    tokens: int
    """Number of tokens that were computed in training."""
    loss_tokens: int
    """Number of these tokens that carried loss."""


class Budget(Part):
    """What was the same for all models."""

    text: str
    """In words."""
    rounds: int
    batch: int
    """Rows to an optimizer step."""
    models: list[Trained]


class Gain(Part):
    """How much better off a silo is with the federated model than alone; means over seeds."""

    silo: str
    own: Finite
    """On its own held-out rows, in nats per token."""
    everybody: Finite | None = None
    """On everybody's held-out rows, in nats per token; None where each silo computed its own row."""
    own_accuracy: Finite | None = None
    """Gain in label accuracy (federated minus alone)."""
    everybody_accuracy: Finite | None = None


class MeanGain(Part):
    """Mean over silos."""

    own: Finite
    everybody: Finite | None = None
    own_accuracy: Finite | None = None
    everybody_accuracy: Finite | None = None


class GainInterval(Part):
    """How sure a gain is: intervals of 95 %."""

    silo: str | None
    """None: the mean over silos."""
    on: Literal["own", "everybody"]
    """`own` or `everybody`: whose rows."""
    gain: float
    t: Interval | None = None
    """Student's t over seeds; None with one seed."""
    bootstrap: Interval
    """Paired bootstrap over test rows, of losses that are means over seeds."""


class SiloPoint(Part):
    """A silo at a point of the curve."""

    silo: str
    rows: int
    """Training rows that it held."""
    own: Finite
    everybody: Finite


class Point(Part):
    """Gains where every silo holds so many training rows; means over silos and seeds."""

    rows: int
    own: Finite
    everybody: Finite
    own_t: Interval | None = None
    """Student's t over seeds; None with one seed."""
    everybody_t: Interval | None = None
    silos: list[SiloPoint] = Field(default_factory=list)
    fewer: list[str] = Field(default_factory=list)
    """Silos that hold fewer rows, and so all they have."""


class Comparison(Part):
    """Base, each silo alone, pooled and federated: the same budget, the same tests."""

    budget: Budget
    matrix: list[Cell]
    everybody: list[Everybody]
    gains: list[Gain]
    mean_gain: MeanGain
    share_of_pooled_gain: Finite | None
    """(base - federated) / (base - pooled), of the mean loss on everybody's held-out rows, means over seeds; None
    where pooled is no better than the base, or there is no pooled model."""
    seeds: list[int]
    intervals: list[GainInterval]
    curve: list[Point] | None = None
    crossover: Finite | None = None
    """Rows at which the gain on own rows first changes its sign, on straight lines over log rows; None: nowhere."""
    remarks: list[str] = Field(default_factory=list)
    """What is to be said of it."""


def path(run: RunFolder) -> Path:
    """Where a run's comparison lies, if it has any."""
    return run.path / "compare.json"


def write(run: RunFolder, found: Comparison) -> None:
    """Keep a comparison in the run's folder."""
    atomic.write_text(path(run), found.model_dump_json(indent=2) + "\n")


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
