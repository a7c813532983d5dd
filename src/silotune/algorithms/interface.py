"""What a method is: how an adapter starts, which of its tensors a round trains, and which ever travel.

    start       the adapter before the first round, drawn from the seed: the same bits on every machine
    trainable   names of the tensors that a round trains; the silos send what these changed by, and nothing else
    seeded      names of the tensors that never change: every silo draws them itself, and they are never sent
    control     what travels beside the adapter, both ways, and how it corrects a silo's steps

A new method is a new file that defines these and `METHOD`, a `Method` of the file's own name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from silotune.model.adapter import NO_TENSORS, AdapterSpec, AdapterState

Arrays = Mapping[str, NDArray[np.float32]]
Slots = Arrays
"""What a server keeps from round to round, by names of its optimizer's own, or of its method's control variates."""


@dataclass(frozen=True)
class ServerState:
    """Everything that the server must remember from round to round; a checkpoint holds exactly this."""

    round: int
    """Rounds that are done."""
    adapter: AdapterState
    """The whole of it, with the tensors that are never trained."""
    slots: Slots = field(default_factory=dict)


def nothing(_: AdapterSpec) -> frozenset[str]:
    """No tensor."""
    return frozenset()


@dataclass(frozen=True)
class LocalResult:
    """What a silo knows when its steps of a round are done."""

    common: Arrays
    """The control variates that the server sent."""
    update: AdapterState
    """What the steps changed, of each tensor that is trained."""
    rates: float
    """Sum of the steps' learning rates."""


@dataclass(frozen=True)
class Control:
    """Control variates: arrays that the server keeps in its slots and each silo in its memory, all 0 at first.

    The server sends its own with the adapter. A silo sends with its update by how much its own have changed, and the
    mean of these, times the share of all weight that arrived, changes the server's.
    """

    variates: Callable[[AdapterSpec], AdapterSpec]
    """adapter -> names and shapes; no name is that of a tensor of the adapter."""
    drift: Callable[[Arrays, Arrays], AdapterState]
    """(the server's, the silo's own as far as it has any) -> what to take off each tensor after each step, per rate."""
    change: Callable[[LocalResult], Arrays]
    """-> by how much the silo's own have changed."""
    most: float
    """Largest absolute value that an honest variate can have: the server's are kept within it, and a silo's may change
    by twice as much."""


@dataclass(frozen=True)
class Method:
    """A federated method, as plain functions."""

    name: str
    start: Callable[[AdapterSpec, int], AdapterState]
    """(spec, seed) -> adapter, which must not change what the base says."""
    trainable: Callable[[AdapterSpec, int], frozenset[str]]
    """(spec, round from 1) -> names; at least one."""
    seeded: Callable[[AdapterSpec], frozenset[str]] = nothing
    """Names that `trainable` never gives."""
    control: Control | None = None

    def beside(self, spec: AdapterSpec) -> AdapterSpec:
        """What travels with the adapter and with each update."""
        return self.control.variates(spec) if self.control else NO_TENSORS

    def sent(self, spec: AdapterSpec) -> AdapterSpec:
        """The part of an adapter that the server sends."""
        return spec.only(spec.names - self.seeded(spec))

    def whole(self, sent: AdapterState, spec: AdapterSpec, seed: int) -> AdapterState:
        """An adapter from the part of it that was sent."""
        seeded = self.seeded(spec)
        if not seeded:
            return sent
        start = self.start(spec, seed)
        return {**sent, **{name: start[name] for name in seeded}}
