"""What a method is: how an adapter starts, which of its tensors a round trains, and which ever travel.

    start       the adapter before the first round, drawn from the seed: the same bits on every machine
    trainable   names of the tensors that a round trains; the silos send what these changed by, and nothing else
    seeded      names of the tensors that never change: every silo draws them itself, and they are never sent

A new method is a new file that defines these and `METHOD`, a `Method` of the file's own name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from silotune.model.adapter import AdapterSpec, AdapterState

Slots = Mapping[str, NDArray[np.float32]]
"""What a server optimizer keeps from round to round, by names of its own."""


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
class Method:
    """A federated method, as plain functions."""

    name: str
    start: Callable[[AdapterSpec, int], AdapterState]
    """(spec, seed) -> adapter, which must not change what the base says."""
    trainable: Callable[[AdapterSpec, int], frozenset[str]]
    """(spec, round from 1) -> names; at least one."""
    seeded: Callable[[AdapterSpec], frozenset[str]] = nothing
    """Names that `trainable` never gives."""

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
