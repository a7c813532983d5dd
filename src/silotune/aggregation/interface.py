"""What makes one update of many: a collector, which says what to ask the silos and takes what they answer.

A collector is a generator without input or output of its own. It yields an `Ask` for each stage of a round, is sent the
answers as they arrive, and returns the aggregate. Most have one stage; masked sums need several.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field

from silotune.model.adapter import NO_TENSORS, AdapterSpec, AdapterState


@dataclass(frozen=True)
class Cohort:
    """Who was asked in a round, with their weights: known before any update arrives."""

    weights: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum of the weights of all who were asked."""
        return sum(self.weights.values())


@dataclass(frozen=True)
class Round:
    """What a collector knows of a round before it asks."""

    adapter: AdapterState
    """The whole adapter that the silos start from."""
    trainable: frozenset[str]
    """Names of its tensors that are trained."""
    cohort: Cohort
    beside: AdapterSpec = NO_TENSORS
    """What comes with each update, to be averaged like it."""

    @property
    def payload(self) -> AdapterSpec:
        """Names and shapes of what a silo sends."""
        return AdapterSpec.of(self.adapter).only(self.trainable).plus(self.beside)


@dataclass(frozen=True)
class Ask:
    """One message to each of some silos."""

    stage: str
    """`train`: local training, answered with the update of what is trainable. Others are a collector's own."""
    requests: Mapping[str, AdapterState] = field(default_factory=dict)
    """By silo, what a stage sends it; `train` sends the adapter to the whole cohort and nothing more."""


@dataclass(frozen=True)
class Contribution:
    """One silo's admitted answer to a stage; to `train`, its update."""

    silo: str
    update: AdapterState
    weight: int
    """At least 1, and as announced before the round."""


@dataclass(frozen=True)
class Aggregate:
    """What a round's updates came to."""

    update: AdapterState
    """The mean of each tensor that the round trained, for the server optimizer, and of what came beside."""
    e_agg: float | None
    """Aggregation error relative to the round's change; see `model.algebra.aggregation_error`. None: not known."""
    silos: tuple[str, ...]
    """Who contributed, by name."""


Collector = Callable[[Round], Generator[Ask, Iterator[Contribution], Aggregate | None]]
"""None if no update arrived. Must give the same bits in any order of arrival."""


def collect(collector: Collector, round_: Round, ask: Callable[[Ask], Iterator[Contribution]]) -> Aggregate | None:
    """Drive a collector through its stages.

    Args:
        collector: to drive.
        round_: what it is told.
        ask: sends a stage's messages and yields what was admitted, as it arrives.
    """
    stages = collector(round_)
    try:
        wanted = next(stages)
        while True:
            wanted = stages.send(ask(wanted))
    except StopIteration as done:
        aggregate: Aggregate | None = done.value
        return aggregate
