"""Answers that come in parts: how much of a silo's is taken, and that nobody waits for parts that are still to come.

A silo registers an answer, and sends its parts after it. Flower's grid waits for them up to two hours, whatever their
number and size, and takes no other answer meanwhile; and it counts an answer as delivered at the first look. It has no
setting for either. So the function with which it pulls is replaced by one that gives up at the first part that is not
there, and what is unfinished is looked at again, part by part, until it is whole. Flower's version is pinned, and
`tests/federation/test_pulling.py` runs this in its own grid.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)

if TYPE_CHECKING:  # it is slow to import, and not needed where silos are on this machine
    from flwr.superlink.grid import HttpGrid

BESIDE = 1 << 20
"""Bytes that an answer may have beside its array."""
PART = 1 << 20
"""An answer may have a part for each of so many bytes: Flower's own have twenty times as many."""
MOST_PARTS = 64
"""Parts that an answer may have beside these."""
SLOWEST = 60.0
"""Seconds within which parts that are there must have come over."""

Pull = Callable[[str], bytes]


class Excess(Exception):
    """An answer has more parts or bytes than it may have, or they take too long."""


@dataclass
class Unfinished(Exception):
    """An answer of which a part is not there yet."""

    parts: Sequence[str]
    """Identifiers of all parts, the answer's own last."""
    pull: Pull
    known: set[str] = field(default_factory=set)
    """Parts that are there."""

    __hash__ = Exception.__hash__


_most_bytes: ContextVar[int | None] = ContextVar("most_bytes", default=None)


@contextmanager
def bounded(most_bytes: int) -> Iterator[None]:
    """While it lasts, Flower's grid takes answers whose array has at most so many bytes, and waits for no part.

    Pulling raises `Unfinished` and `Excess`; only one answer may be asked for at a time.
    """
    if grid := sys.modules.get("flwr.superlink.grid.http_grid"):
        assert hasattr(grid, "pull_objects"), "this is another Flower than the one that is pinned"
        grid.pull_objects = _pull  # type: ignore[attr-defined]
    token = _most_bytes.set(most_bytes + BESIDE)
    try:
        yield
    finally:
        _most_bytes.reset(token)


def _pull(object_ids: list[str], pull_object_fn: Pull) -> dict[str, bytes]:
    """What stands in the place of Flower's `pull_objects` in its grid."""
    most = _most_bytes.get()
    if most is None:
        return pull_objects(object_ids, pull_object_fn)
    if len(object_ids) > MOST_PARTS + most // PART:
        raise Excess(f"the answer has {len(object_ids)} parts")
    return _all_there(Unfinished(object_ids, pull_object_fn), most)


def _all_there(answer: Unfinished, most: int) -> dict[str, bytes]:
    """Every part of an answer.

    Raises:
        Unfinished: one is not there yet.
        Excess: they are too large, or take too long.
    """
    lock, total, until = threading.Lock(), 0, time.monotonic() + SLOWEST

    def pull(identifier: str) -> bytes:
        nonlocal total
        try:
            part = answer.pull(identifier)
        except ObjectUnavailableError:
            raise answer from None
        with lock:
            total += len(part)
            answer.known.add(identifier)
        if total > most:
            raise Excess(f"the answer has more than {most} bytes")
        if time.monotonic() > until:
            raise Excess(f"the answer takes more than {SLOWEST:g} s")
        return part

    return pull_objects(list(answer.parts), pull)


def finish(grid: Grid, answer: Unfinished, most_bytes: int) -> Message | None:
    """Return an answer that was unfinished; None if it still is.

    What is not known to be there is looked for first, so that an answer that comes slowly is not held in memory.

    Raises:
        Excess: it is larger than it may be.
        ObjectPullError: it will not come whole any more.
    """
    for identifier in answer.parts:
        if identifier not in answer.known:
            try:
                answer.pull(identifier)
            except ObjectUnavailableError:
                return None
            answer.known.add(identifier)
    contents = _all_there(answer, most_bytes + BESIDE)
    head = answer.parts[-1]
    flower = cast("HttpGrid", grid)
    flower._runtime_client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=flower.node, run_id=flower.run.run_id, message_object_id=head)
    )
    message = cast(Message, inflate_object_from_contents(head, contents))
    message.metadata.__dict__["_message_id"] = head
    return message
