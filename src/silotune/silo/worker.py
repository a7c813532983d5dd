"""A silo's worker: the one process that reads its text, and answers envelopes on a local socket.

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
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from silotune.data.silos.sources import SiloConfig
from silotune.errors import AdmissionError, InputError
from silotune.privacy import ledger
from silotune.privacy.ledger import Entry
from silotune.silo.answer import answer, guarded
from silotune.wire import framing
from silotune.wire.envelope import Envelope, Kind, failure, shown
from silotune.wire.framing import Frame

logger = logging.getLogger(__name__)

Answer = Callable[[Envelope, SiloConfig], Envelope]

MOST_BYTES = 4 << 30
"""Bytes of an adapter that a server may send; its exact size is checked against the model before it is used."""
PATIENCE = 60.0
"""Seconds within which a part of an envelope must come, or be taken: a carrier that stops would keep all others out."""
PEER = struct.Struct("3i")
"""Process, user and group of a socket's other end."""
OUTSIDER: Kind = "join"
"""The kind that stands in the ledger for what was no envelope."""


def serve(
    place: Path,
    silo: SiloConfig,
    users: Set[int],
    stop: threading.Event,
    ready: Callable[[], None] = lambda: None,
    answered: Answer = answer,
) -> None:
    """Answer envelopes on a socket until `stop` is set.

    Args:
        place: path of the socket; its folder says who may reach it.
        silo: what the silo holds.
        users: numbers of the users who may ask.
        stop: looked at twice a second.
        ready: called when the socket is there.
        answered: what answers an envelope.

    Raises:
        InputError: the socket cannot be made, or a worker answers there already.
    """
    with _listening(place) as listener:
        ready()
        while not stop.is_set():
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                continue
            with peer:
                peer.settimeout(PATIENCE)
                _serve_one(peer, silo, users, answered)


def _serve_one(peer: socket.socket, silo: SiloConfig, users: Set[int], answered: Answer) -> None:
    """Answer what one peer asks; whatever it does, the next one is heard."""
    user = _user_of(peer)
    if user not in users:
        _note_refusal(silo, f"user {user} of this machine may not ask this silo's worker")
        return
    try:
        with peer.makefile("rb", buffering=0) as stream:
            request = framing.read(stream, "down", MOST_BYTES)
    except AdmissionError as error:
        _note_refusal(silo, str(error))
        with suppress(OSError):
            _send(peer, framing.frame(failure(OUTSIDER, str(error))))
        return
    except MemoryError:
        _note_refusal(silo, "an envelope is larger than this machine's memory")
        return
    except OSError as error:
        _note_refusal(silo, f"nothing came whole ({error.strerror or 'it took too long'})")
        return
    round_ = int(request.fields.get("round", 0))
    reply = guarded(request.kind, lambda: answered(request, silo), silo)
    written = framing.frame(reply)
    if silo.ledger is not None:
        try:
            ledger.append(silo.ledger, _entry(reply, silo, round_, written))
        except OSError as error:  # what cannot be entered does not leave
            written = framing.frame(failure(request.kind, f"this silo's ledger cannot be written ({error.strerror})"))
    with suppress(OSError):  # the carrier has gone; the server will say that nothing came
        _send(peer, written)


def _entry(reply: Envelope, silo: SiloConfig, round_: int, written: Frame) -> Entry:
    tensors = reply.manifest.spec.shapes if reply.manifest else ()
    dtype = reply.manifest.codec if reply.manifest else None
    return Entry("up", silo.files.name, reply.kind, round_, tensors, dtype, reply.fields, written.bytes, written.sha256)


def _note_refusal(silo: SiloConfig, reason: str) -> None:
    """Enter what was turned away; where that is impossible it is in the log."""
    reason = shown(reason)
    logger.warning("turned away: %s", reason)
    if silo.ledger is not None:
        with suppress(OSError):
            ledger.append(silo.ledger, Entry("down", silo.files.name, OUTSIDER, 0, (), None,
                                             {"inadmissible": reason}, 0, ""))  # fmt: skip


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
            return framing.read(stream, "up", MOST_BYTES)
