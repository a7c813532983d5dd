"""How long, and for how much, a server waits for an answer of which parts are still to come.

A silo may register an answer and send its parts later, or never. Flower waits up to two hours for them, takes them
whatever their size, and takes no other silo's answer meanwhile; it has no setting for that. So the function with which
its grid pulls is replaced by one that keeps to the limits of whoever pulls. Flower's version is pinned.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from flwr.supercore.constant import PULL_MAX_TIME
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects

BESIDE = 1 << 20
"""Bytes that an answer may have beside its array."""


@dataclass(frozen=True)
class Limits:
    """Of one pull."""

    until: float = math.inf
    """On the monotonic clock."""
    bytes: int = 8 << 30
    """Of all parts."""


_limits: ContextVar[Limits] = ContextVar("limits", default=Limits())  # noqa: B039 - it is frozen


@contextmanager
def within(until: float, most_bytes: int) -> Iterator[None]:
    """Pull until a moment of the monotonic clock at most, and no answer whose array has more than so many bytes.

    An answer that is not there by then, or is larger, comes back from Flower's grid as a message with an error.
    """
    if grid := sys.modules.get("flwr.superlink.grid.http_grid"):  # not loaded where silos are on this machine
        grid.pull_objects = _pull  # type: ignore[attr-defined]
    token = _limits.set(Limits(until, most_bytes + BESIDE))
    try:
        yield
    finally:
        _limits.reset(token)


def _pull(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
    limits, sizes = _limits.get(), list[int]()

    def pull(identifier: str) -> bytes:
        part = pull_object_fn(identifier)
        sizes.append(len(part))
        if sum(sizes) > limits.bytes:
            raise ObjectPullError(identifier, "the answer is too large")
        return part

    left = max(0.0, limits.until - time.monotonic())
    return pull_objects(object_ids, pull, max_time=min(left, PULL_MAX_TIME))
