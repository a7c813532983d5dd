"""A silo's worker on a local socket, in a process of its own: the only one that reads the silo's text.

What Flower starts on a member's machine is another process, under another user if the machine has one for it: it takes
envelopes to this socket and brings the answers back (`federation.carrier`). Nothing that comes over the socket is ever
run, and nothing but declared envelopes goes out. The base is loaded once and stays.

An envelope is answered at a time. Every answer stands in the silo's ledger before it leaves, and so does whatever came
that was no envelope, or came from a user who may not ask.
"""

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from silotune.data.silos.sources import SiloConfig
from silotune.errors import AdmissionError, InputError
from silotune.privacy import ledger
from silotune.privacy.ledger import Entry
from silotune.silo.worker import Worker
from silotune.wire import framing
from silotune.wire.envelope import Envelope, Kind, failure, shown
from silotune.wire.framing import Frame

logger = logging.getLogger(__name__)

MOST_BYTES = 4 << 30
"""Bytes of an adapter that a server may send; its exact size is checked against the model before it is used."""
PATIENCE = 60.0
"""Seconds within which a part of an envelope must come, or be taken: a carrier that stops would keep all others out."""
LONGEST = 900.0
"""Seconds after which nothing more is taken of one envelope."""
AGAIN = 60.0
"""Seconds in which the same refusal is entered once: whoever floods the socket does not fill the ledger."""
MOST_REASONS = 100
"""Different refusals that are entered in so many seconds."""
PEER = struct.Struct("3i")
"""Process, user and group of a socket's other end."""
OUTSIDER: Kind = "join"
"""The kind that stands in the ledger for what was no envelope."""


@dataclass
class Refusals:
    """What was turned away: in the log and the silo's ledger, each reason once a while."""

    silo: SiloConfig
    noted: dict[str, float] = field(default_factory=dict)
    """When a reason was noted last, on the monotonic clock."""

    def note(self, reason: str) -> None:
        """Take note of what was turned away; where the ledger cannot be written it is in the log."""
        reason, now = shown(reason), time.monotonic()
        self.noted = {other: when for other, when in self.noted.items() if now - when < AGAIN}
        if reason in self.noted or len(self.noted) >= MOST_REASONS:
            return
        self.noted[reason] = now
        logger.warning("turned away: %s", reason)
        if self.silo.ledger is not None:
            with suppress(OSError):
                ledger.append(self.silo.ledger, Entry("down", self.silo.files.name, OUTSIDER, 0, (), None,
                                                      {"inadmissible": reason}, 0, ""))  # fmt: skip


def serve(
    place: Path, worker: Worker, users: Set[int], stop: threading.Event, ready: Callable[[], None] = lambda: None
) -> None:
    """Answer envelopes on a socket until `stop` is set.

    Args:
        place: path of the socket; its folder says who may reach it.
        worker: what answers.
        users: numbers of the users who may ask.
        stop: looked at twice a second.
        ready: called when the socket is there.

    Raises:
        InputError: the socket cannot be made, or a worker answers there already.
    """
    refusals = Refusals(worker.silo)
    with _listening(place) as listener:
        ready()
        while not stop.is_set():
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                continue
            with peer:
                peer.settimeout(PATIENCE)
                _serve_one(peer, worker, users, refusals)


def _serve_one(peer: socket.socket, worker: Worker, users: Set[int], refusals: Refusals) -> None:
    """Answer what one peer asks; whatever it does, the next one is heard."""
    silo, user = worker.silo, _user_of(peer)
    if user not in users:
        refusals.note(f"user {user} of this machine may not ask this silo's worker")
        return
    try:
        with _cut_short(peer), peer.makefile("rb", buffering=0) as stream:
            request = framing.read(stream, "down", MOST_BYTES)
    except AdmissionError as error:
        refusals.note(str(error))
        with suppress(OSError):
            _send(peer, framing.frame(failure(OUTSIDER, str(error))))
        return
    except MemoryError:
        refusals.note("an envelope is larger than this machine's memory")
        return
    except OSError as error:
        refusals.note(f"nothing came whole ({error.strerror or 'it took too long'})")
        return
    round_ = int(request.fields.get("round", 0))
    reply = worker.answer(request)
    written = framing.frame(reply)
    if silo.ledger is not None:
        try:
            ledger.append(silo.ledger, _entry(reply, silo, round_, written))
        except OSError as error:  # what cannot be entered does not leave
            written = framing.frame(failure(request.kind, f"this silo's ledger cannot be written ({error.strerror})"))
    with suppress(OSError):  # the carrier has gone; the server will say that nothing came
        _send(peer, written)


@contextmanager
def _cut_short(peer: socket.socket) -> Iterator[None]:
    """Have a peer that sends byte after byte cut off in the end."""
    timer = threading.Timer(LONGEST, lambda: peer.shutdown(socket.SHUT_RDWR))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _entry(reply: Envelope, silo: SiloConfig, round_: int, written: Frame) -> Entry:
    tensors = reply.manifest.spec.shapes if reply.manifest else ()
    dtype = reply.manifest.codec if reply.manifest else None
    return Entry("up", silo.files.name, reply.kind, round_, tensors, dtype, reply.fields, written.bytes, written.sha256)


def _send(peer: socket.socket, written: Frame) -> None:
    peer.sendall(written.head)
    peer.sendall(written.array)


def _user_of(peer: socket.socket) -> int:
    """The number of the user whose process is at the other end, as the kernel tells it."""
    told = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    return int(PEER.unpack(told)[1])


@contextmanager
def _listening(place: Path) -> Iterator[socket.socket]:
    """A socket at a path; what a worker that was killed has left there is taken away first."""
    try:
        if place.is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(place)) == 0:
                    raise InputError(f"{place}: a worker answers there already.")
            place.unlink()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
            try:
                place.chmod(0o666)  # who may ask is looked up for each peer, and the folder keeps others away
                listener.listen(8)
                listener.settimeout(0.5)
                yield listener
            finally:
                place.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{place}: cannot listen there ({error.strerror or error}).") from None


def ask(place: Path, request: Envelope, seconds: float) -> Envelope:
    """Take an envelope to a worker, and bring its answer.

    Args:
        place: path of its socket.
        request: to take there.
        seconds: to wait at most for the answer.

    Raises:
        AdmissionError: what came back is no answer.
        OSError: no worker answers there.
    """
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(seconds)  # others may be answered first
        peer.connect(str(place))
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have turned this away before it read all
            _send(peer, framing.frame(request))
        with peer.makefile("rb", buffering=0) as stream:
            try:
                return framing.read(stream, "up", MOST_BYTES)
            except framing.CutShortError:
                raise ConnectionResetError("the worker has ended") from None
