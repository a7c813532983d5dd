"""A silo's carrier: it takes Flower's messages to the silo's worker, and brings the answers back.

It stands where Flower's SuperNode stands, and speaks to the SuperLink as one does, with Flower's own client. A
SuperNode fetches the app that came with a run, installs it, and starts a process that loads and calls it, for each
message. This does none of it: no code that was sent is fetched, let alone run. It pulls the message, takes the envelope
in it to the worker's socket, and pushes the answer; what is no envelope is answered with a refusal.

What is used of Flower here is internal to it, and used nowhere else. Its version is pinned, and
`tests/real/test_house.py` runs this against the real SuperLink.
"""

import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_connection import http_request_response

from silotune.errors import AdmissionError, InputError
from silotune.federation.messages import TYPES, content, envelope
from silotune.silo import local_socket
from silotune.wire.envelope import Envelope, Kind, failure

logger = logging.getLogger(__name__)

PAUSE, IDLE_PAUSE, IDLE = 0.3, 3.0, 120.0
"""Seconds between two looks for a message; if none has come for so long; and how long that is."""
KINDS: dict[str, Kind] = {name: kind for kind, name in TYPES.items()}
RESTART = 90.0
"""Seconds that a worker which is away is waited for: it may be starting."""
ATTEMPTS = 3
"""How often a worker is asked the same, if it ends while it works on it."""
MOST_PARTS = 1 << 14
"""Parts that a message may have: Flower cuts arrays into pieces of 5 MiB."""
NO_WORKER = "this silo's worker does not answer: whoever runs the silo must start it"


def carry(socket: Path, superlink: str, certificates: Path | None, key: Path | None) -> None:
    """Be a silo's node, and carry its messages to the worker, until the SuperLink takes this node no more.

    A SuperLink that is away is waited for. Whoever wants an end raises SystemExit in this thread, as `silo carrier`
    does for SIGTERM: Flower's client waits without looking at anything.

    Args:
        socket: where the worker answers.
        superlink: HOST:PORT of the consortium.
        certificates: of its CA (PEM); None: those that the system trusts.
        key: of the node, as OpenSSH writes it; None: it draws one, which an open SuperLink takes.

    Raises:
        InputError: a file cannot be read.
        SystemExit: the SuperLink does not take this node; it may later.
    """
    root = _read(certificates) if certificates is not None else None
    keys = _keys(key) if key is not None else None
    with http_request_response(superlink, False, root, keys) as (_, receive, send, _, _, pull, push, confirm):
        carrier = Carrier(socket, receive, send, pull, push, confirm)
        heard = time.monotonic()
        logger.warning("%s takes this node", superlink)
        while True:
            time.sleep(IDLE_PAUSE if time.monotonic() - heard > IDLE else PAUSE)
            if carrier.carry_one():
                heard = time.monotonic()


def _read(place: Path) -> bytes:
    try:
        return place.read_bytes()
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror}).") from None


def _keys(place: Path) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    try:
        found = load_ssh_private_key(_read(place), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise InputError(f"{place}: not the key of a node (an EC key, as OpenSSH writes it).")
    return found, found.public_key()


@dataclass(frozen=True)
class Carrier:
    """Between a SuperLink and a worker."""

    place: Path
    """Path of the worker's socket."""
    receive: Callable[[], tuple[Message, ObjectTree] | None]
    send: Callable[[Message, ObjectTree, float], tuple[Set[str], str]]
    pull: Callable[[int, str], bytes]
    push: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]

    def carry_one(self) -> bool:
        """Carry a message to the worker, and its answer back; whether there was one.

        Raises:
            Exception: the SuperLink takes this node no more.
            SystemExit: the message, or its answer, did not come over the line.
        """
        try:
            received = self.receive()
        except RunNotRunningException:
            return False
        if received is None:
            return False
        try:
            began = time.monotonic()
            try:
                reply = answered(self._whole(*received), self.place)
            except AdmissionError as error:
                reply = Message(content(failure("join", str(error))), reply_to=received[0])
            self._push(reply, time.monotonic() - began)
        except RunNotRunningException:
            logger.warning("a message is of a run that has ended")
        except Exception as error:
            # The answer is lost, and is asked for again when this node begins anew.
            logger.warning("a message could not be carried: %s", type(error).__name__)
            raise SystemExit(1) from None
        return True

    def _whole(self, message: Message, tree: ObjectTree) -> Message:
        """A message with what it carries.

        Raises:
            AdmissionError: it is larger than any may be.
        """
        run, left = message.metadata.run_id, [local_socket.MOST_BYTES]
        if sum(1 for _ in iterate_object_tree(tree)) > MOST_PARTS:
            raise AdmissionError("the message has more parts than any may have")

        def pull(part: str) -> bytes:
            found = self.pull(run, part)
            left[0] -= len(found)
            if left[0] < 0:
                raise AdmissionError("the message is larger than any may be")
            return found

        whole = pull_and_inflate_object_from_tree(tree, pull, lambda part: self.confirm(run, part), return_type=Message)
        whole.metadata.__dict__["_message_id"] = tree.object_id
        return whole

    def _push(self, reply: Message, seconds: float) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        run = reply.metadata.run_id
        with no_object_id_recompute():
            wanted, session = self.send(reply, get_object_tree(reply), seconds)
            push_objects(
                get_all_nested_objects(reply), lambda part, data: self.push(run, session, part, data),
                object_ids_to_push=set(wanted),
            )  # fmt: skip


def answered(message: Message, place: Path) -> Message:
    """The worker's answer to a message; one that is no envelope never reaches it."""
    kind = KINDS.get(message.metadata.message_type)
    if kind is None:
        refusal = failure("join", "this silo answers silotune's messages and no others")
        return Message(content(refusal), reply_to=message)
    return Message(content(_asked(message, kind, place)), reply_to=message)


def _asked(message: Message, kind: Kind, place: Path) -> Envelope:
    try:
        request, until, attempts = envelope(message, "down", kind, local_socket.MOST_BYTES), None, 0
        while True:
            try:
                return local_socket.ask(place, request, message.metadata.ttl)
            except (FileNotFoundError, ConnectionRefusedError):
                until = time.monotonic() + RESTART if until is None else until
                if time.monotonic() > until:
                    raise
            except ConnectionError:  # it has ended while it worked on this, and is started again
                attempts, until = attempts + 1, None
                if attempts == ATTEMPTS:
                    raise
            time.sleep(1.0)
    except AdmissionError as error:
        return failure(kind, str(error))
    except OSError:
        return failure(kind, NO_WORKER)
    except Exception as error:  # of a message that may hold whatever it likes
        return failure(kind, f"the message cannot be read ({type(error).__name__})")
