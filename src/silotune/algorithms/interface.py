"""What an algorithm is: four plain functions over frozen state.

    init        the server's state before the first round
    client      at a silo: what travels, from the adapter received and the one after local training
    aggregate   at the server: from updates as they arrive to their aggregate, without keeping them all
    apply       the next state

A new method is a new file that defines these and `ALGORITHM`, an `Algorithm` of the file's own name.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from silotune.model.adapter import AdapterState
from silotune.settings import FederationSettings


@dataclass(frozen=True)
class ServerState:
    """Everything that the server must remember from round to round; a checkpoint holds exactly this."""

    round: int
    """Rounds that are done."""
    adapter: AdapterState
    extra: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """What else the method keeps (momentum, say)."""


@dataclass(frozen=True)
class Contribution:
    """One silo's admitted update."""

    silo: str
    update: AdapterState
    weight: int
    """At least 1, and as announced before the round."""


@dataclass(frozen=True)
class Aggregate:
    """What a round's updates came to."""

    update: AdapterState
    """Weighted mean of the updates that arrived."""
    e_agg: float | None
    """Aggregation error relative to the round's change; see `model.algebra.aggregation_error`. None: not known."""
    silos: tuple[str, ...]
    """Who contributed, by name."""


@dataclass(frozen=True)
class Cohort:
    """Who was asked in a round, with their weights: known before any update arrives."""

    weights: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum of the weights of all who were asked."""
        return sum(self.weights.values())


@dataclass(frozen=True)
class Algorithm:
    """A method, as four functions."""

    name: str
    init: Callable[[AdapterState], ServerState]
    client: Callable[[AdapterState, AdapterState], AdapterState]
    """(received, trained) -> what travels."""
    aggregate: Callable[[ServerState, Cohort, Iterable[Contribution]], Aggregate | None]
    """None if nothing arrived. Must give the same bits in any order of arrival."""
    apply: Callable[[ServerState, Aggregate, FederationSettings], ServerState]
