"""One message to each of some silos, and their answers as they arrive: with a deadline, and in the ledger."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError

from silotune.errors import AdmissionError, FederationError, Interrupted
from silotune.federation import checkpoint
from silotune.federation.events import Event, RunContext
from silotune.federation.messages import TYPES, content, envelope, hashed_once, ledger_entry, refused_entry, weigh
from silotune.federation.pulling import Excess, Unfinished, bounded, finish
from silotune.federation.run import RunFolder
from silotune.privacy import ledger
from silotune.privacy.ledger import Entry
from silotune.silo.progress import call_off
from silotune.wire.envelope import Envelope, Kind, shown

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between two looks for answers: short at first and after each answer, then longer."""
GRACE = 180.0
"""Seconds for which a node that has gone is waited for where its answer is not needed: a server notices within two
minutes that one was killed, and takes it back then."""
LOOK_FOR_NODES = 5.0
"""Seconds between two looks for nodes that have begun anew."""
KEPT = 12 * 3600.0
"""Seconds that Flower keeps a message beyond its deadline, for answers that come late and clocks that jump."""

UNREADABLE, NOT_WHOLE = "the answer cannot be read", "the answer did not come whole"
ERRORS = {
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION: "the silo's app could not be loaded",
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "the silo's app raised an exception",
    ErrorCode.MESSAGE_UNAVAILABLE: "the message expired or was lost",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "the answer was lost",
    ErrorCode.NODE_UNAVAILABLE: "the silo is not connected any more",
    ErrorCode.CLIENT_APP_CRASHED: "the silo's process died",
}
LOST = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""Of these: those that say that a node has gone."""


@dataclass(frozen=True)
class Answer:
    """What came back from a node, or why nothing did."""

    node: int
    content: Envelope | None
    problem: str | None
    bytes_down: int
    bytes_up: int
    lost: bool = False
    """Whether the node went while it worked on this."""


@dataclass(frozen=True)
class Asked:
    """A message that is under way."""

    node: int
    name: str
    """Name of the silo; empty while it is not known."""
    kind: Kind
    round: int
    bytes: int
    seconds: float
    """To wait for the answer."""
    until: float
    """The deadline, on the monotonic clock."""


@dataclass(frozen=True)
class Transport:
    """The way to the silos."""

    grid: Grid
    run: RunFolder
    run_context: RunContext
    most_bytes: int
    """Most bytes that an answer's array may have."""
    in_turn: bool = False
    """Whether silos answer one after another, in this process, while their answers are looked for."""
    late: dict[str, Asked] = field(default_factory=dict)
    """Messages that nobody waits for any more, by identifier."""
    unreadable: set[str] = field(default_factory=set)
    """Messages of which an answer could not be pulled once."""
    unfinished: dict[str, Unfinished] = field(default_factory=dict)
    """Answers of which parts are still to come, by the message that they are to."""


def exchange(
    transport: Transport,
    requests: Mapping[int, Envelope],
    names: Mapping[int, str],
    round_: int,
    seconds: float,
    enough: int = 0,
) -> Iterator[Answer]:
    """Send each node its request and yield every node's answer or problem, in the order of arrival.

    Nodes are asked in the order of `requests`. A node that has not answered after `seconds` yields a problem, its work
    is called off where it can be, and its answer, should it come later, is entered in the ledger but not used. Where
    silos answer in turn, the time of each counts for it alone, as if they all worked at once, and none is cut short.
    A node that goes while it works is waited for, and asked again when it is back: for a while where `enough` good
    answers are there, else until the deadline.

    Raises:
        Interrupted: the user asked to stop.
    """
    waiting, nodes = send(transport, requests, names, round_, seconds), list(requests)
    again = None
    if transport.run_context.activations is not None:
        again = _Again(transport, requests, names, round_, time.monotonic() + seconds, enough)
    del requests  # they may hold an adapter; where nodes begin once nobody else does
    sent = {asked.node for asked in waiting.values()}
    yield from (not_sent(node) for node in nodes if node not in sent)
    pause = FIRST_PAUSE
    try:
        while waiting or (again is not None and again.missing):
            quiet = True
            for answer in arrivals(transport, waiting):
                require_going(transport)
                if again is None or again.takes(answer, waiting):
                    yield answer
                quiet = False
                del answer  # while the next one is taken
            require_going(transport)
            if again is not None:
                again.look(waiting)
                yield from (answer for answer in again.gone() if again.takes(answer, waiting))
            pause = min(pause * 1.5, LONGEST_PAUSE) if quiet else FIRST_PAUSE
            if quiet and (waiting or again is not None):
                time.sleep(pause)
    finally:
        transport.late.update(waiting)


@dataclass
class _Again:
    """Asks once more what a node was asked before it began anew: Flower had given it the message, and it is lost.

    A silo answers the same request with the same bits, and the first answer is the one that is used.
    """

    transport: Transport
    requests: Mapping[int, Envelope]
    names: Mapping[int, str]
    round: int
    until: float
    """The deadline, on the monotonic clock."""
    enough: int
    """Good answers beyond which a node that has gone is waited for a while only."""
    answered: set[int] = field(default_factory=set)
    missing: dict[int, tuple[Answer, float]] = field(default_factory=dict)
    """Nodes that went while they worked: what Flower says of it, and when, on the monotonic clock."""
    good: int = 0

    def __post_init__(self) -> None:
        self._looked = time.monotonic()
        self._marks = {node: mark for node, mark in (self._now() or {}).items() if mark}

    def _now(self) -> Mapping[int, str] | None:
        assert self.transport.run_context.activations is not None
        try:
            return self.transport.run_context.activations()
        except FederationError:  # the server of nodes is away for a moment
            return None

    def takes(self, answer: Answer, waiting: dict[str, Asked]) -> bool:
        """Whether this is a node's answer; another one that is under way is not waited for any more.

        A node that has gone may come back, as long as there is time.
        """
        if answer.node in self.answered:
            return False
        if answer.lost and answer.node not in self.missing and time.monotonic() < self.until:
            self.missing[answer.node] = answer, time.monotonic()
            return False
        self.answered.add(answer.node)
        self.good += answer.problem is None
        self.missing.pop(answer.node, None)
        for identifier, asked in list(waiting.items()):
            if asked.node == answer.node:
                self.transport.late[identifier] = waiting.pop(identifier)
        return True

    def look(self, waiting: dict[str, Asked]) -> None:
        """Ask nodes that have begun anew, at most every few seconds."""
        now = time.monotonic()
        if now - self._looked < LOOK_FOR_NODES or now >= self.until:
            return
        self._looked = now
        under_way, here = {asked.node for asked in waiting.values()}, self._now()
        if here is None:
            return
        for node in self.missing.keys() - here.keys():  # it was expelled
            self.missing[node] = self.missing[node][0], -math.inf
        for node, mark in here.items():
            if node not in self.requests or node in self.answered or mark in ("", self._marks.get(node)):
                continue
            known, self._marks[node] = node in self._marks, mark
            if node in self.missing or (known and node in under_way):
                self.missing.pop(node, None)
                self.transport.run_context.watch(Event("asked_again", {"silo": self.names[node], "round": self.round}))
                waiting.update(
                    send(self.transport, {node: self.requests[node]}, self.names, self.round, self.until - now)
                )

    def gone(self) -> list[Answer]:
        """What is known of nodes that have gone and are not waited for any more."""
        now, enough = time.monotonic(), self.good >= self.enough
        return [answer for answer, since in self.missing.values()
                if now >= self.until or since == -math.inf or (enough and now >= since + GRACE)]  # fmt: skip


def require_going(transport: Transport) -> None:
    """Raise `Interrupted` if the user has asked to stop."""
    if transport.run_context.stop.is_set():
        raise Interrupted(f"Stopped by the user; {checkpoint.reached(transport.run)}.")


def send(
    transport: Transport, requests: Mapping[int, Envelope], names: Mapping[int, str], round_: int, seconds: float
) -> dict[str, Asked]:
    """Push the requests; return what is under way by Flower's identifiers. A node that is missing was not reached."""
    waiting: dict[str, Asked] = {}
    with hashed_once():
        for request in {id(request): request for request in requests.values()}.values():
            records = content(request)  # what goes to all is held, serialised and weighed once
            weight = weigh(records)
            for node in (node for node, wanted in requests.items() if wanted is request):
                name = names.get(node, "")
                message = Message(records, node, TYPES[request.kind], group_id=str(round_), ttl=seconds + KEPT)
                entry = replace(ledger_entry(request, message, name or unnamed(node), round_, weight), node=node)
                # One by one: Flower stores identical contents once, and a refusal concerns this node alone.
                for identifier in transport.grid.push_messages([message]):
                    if identifier:
                        until = time.monotonic() + seconds
                        waiting[identifier] = Asked(node, name, request.kind, round_, entry.bytes, seconds, until)
                        _book(transport, entry)
    return waiting


def not_sent(node: int) -> Answer:
    """What is known of a node that was not reached."""
    return Answer(node, None, "the message could not be sent", 0, 0)


def unnamed(node: int) -> str:
    """What to call a node whose silo is not known yet."""
    return f"node {node}"


def arrivals(transport: Transport, waiting: dict[str, Asked]) -> Iterator[Answer]:
    """Take out of `waiting` what has arrived and what is overdue."""
    quiet = True
    for answer in look(transport, waiting):
        quiet = False
        yield answer
        del answer
    if quiet:  # else what has come while these were worked on is looked for first
        yield from overdue(transport, waiting)


def look(transport: Transport, waiting: dict[str, Asked]) -> Iterator[Answer]:
    """Take the answers that have arrived out of `waiting`, one at a time.

    Those that came too late are entered in the ledger only.
    """
    identifiers = [*waiting, *transport.late]
    for wanted in [identifiers] if transport.in_turn else [[identifier] for identifier in identifiers]:
        began = time.monotonic()
        replies = _pulled(transport, wanted)
        took = time.monotonic() - began if transport.in_turn else 0.0
        while replies:
            identifier, reply = replies.pop(0)
            if (asked := waiting.pop(identifier, None)) is not None:
                in_time = took <= asked.seconds
                answer = _open(transport, reply, asked, late=not in_time)
                yield answer if in_time else replace(answer, content=None, problem=_too_late(asked))
            elif (asked := transport.late.pop(identifier, None)) is not None:
                _open(transport, reply, asked, late=True)


def _pulled(transport: Transport, identifiers: Sequence[str]) -> list[tuple[str, Message | str]]:
    """What has arrived for these messages, by their identifiers; of an answer that cannot be taken, why.

    An answer says itself which message it is to; what is to another than was asked for is passed over. Of a message
    that cannot be pulled it is not certain that its own answer is at fault: it is, if that happens again. An answer of
    which parts are still to come has not arrived.

    Raises:
        Exception: the connection is lost, or, where silos answer in this process, whatever is raised there.
    """
    if transport.in_turn:
        replies = list(transport.grid.pull_messages(identifiers))
    else:
        (identifier,) = identifiers
        try:
            replies = _pulled_whole(transport, identifier)
        except Excess as error:
            return [(identifier, str(error))]
        except ObjectPullError:
            return [(identifier, NOT_WHOLE)]
        except Interrupted:  # while a server that had gone was waited for
            raise
        except Exception as error:
            if _of_the_connection(error):
                raise
            again = identifier in transport.unreadable
            transport.unreadable.add(identifier)
            return [(identifier, UNREADABLE)] if again else []
    named = [(reply.metadata.reply_to_message_id, reply) for reply in replies]
    return [(identifier, reply) for identifier, reply in named if identifier in identifiers]


def _pulled_whole(transport: Transport, identifier: str) -> list[Message]:
    """The answer to a message if it is whole; where it is not, it is looked at again the next time.

    Raises:
        Exception: whatever reading it raises.
    """
    answer = transport.unfinished.get(identifier)
    if answer is not None:
        message = finish(transport.grid, answer, transport.most_bytes)
        if message is None:
            return []
        del transport.unfinished[identifier]
        return [message]
    try:
        with bounded(transport.most_bytes):
            return list(transport.grid.pull_messages([identifier]))
    except Unfinished as found:
        transport.unfinished[identifier] = found
        return []


def _of_the_connection(error: Exception) -> bool:
    """Whether it is the way to the server that fails, not what came over it."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "grpc")


def overdue(transport: Transport, waiting: dict[str, Asked]) -> list[Answer]:
    """Take out of `waiting` what has not been answered in time, and call it off."""
    if transport.in_turn:
        return []
    now = time.monotonic()
    over = {identifier: asked for identifier, asked in waiting.items() if asked.until <= now}
    for identifier, asked in over.items():
        transport.late[identifier] = waiting.pop(identifier)
        if transport.run_context.scratch is not None and asked.name:
            call_off(transport.run_context.scratch, asked.name, asked.round, asked.kind)
    return [Answer(asked.node, None, _too_late(asked), asked.bytes, 0) for asked in over.values()]


def enter_late(transport: Transport) -> None:
    """Enter what has come too late so far. The end of a run does not depend on it: nothing is raised."""
    if not transport.in_turn:  # there it would be answered now
        with suppress(Exception):
            for _ in look(transport, {}):
                pass


def _too_late(asked: Asked) -> str:
    return f"no answer within {asked.seconds:g} s"


def _open(transport: Transport, reply: Message | str, asked: Asked, late: bool) -> Answer:
    """Enter an answer in the ledger and say what it is. Whatever goes wrong in reading it is its own fault."""
    if isinstance(reply, Message) and reply.has_error():
        return Answer(asked.node, None, _error_text(reply), asked.bytes, 0, lost=reply.error.code in LOST)
    kind, name, opened = asked.kind, asked.name or unnamed(asked.node), None
    try:
        if isinstance(reply, str):
            raise AdmissionError(reply)
        opened = envelope(reply, "up", kind, transport.most_bytes)
        name = asked.name or shown(str(opened.fields.get("silo", name)))[:64]
        with hashed_once():
            entry, problem = ledger_entry(opened, reply, name, asked.round), opened.failure
    except Exception as error:  # its words may be the silo's
        problem = shown(str(error)) if isinstance(error, AdmissionError) else UNREADABLE
        entry = refused_entry(reply if isinstance(reply, Message) else None, kind, name, asked.round, problem)
    _book(transport, replace(entry, node=asked.node, late=late))
    return Answer(asked.node, opened if problem is None else None, problem, asked.bytes, entry.bytes)


def _book(transport: Transport, entry: Entry) -> None:
    """Enter a message in the ledger, and tell whoever watches."""
    ledger.append(transport.run.ledger_file, entry)
    transport.run_context.watch(Event("message", {
        "direction": entry.direction, "silo": entry.silo, "kind": entry.kind, "round": entry.round,
        "bytes": entry.bytes, "node": entry.node, "late": entry.late,
    }))  # fmt: skip


def _error_text(reply: Message) -> str:
    """Flower's error codes in words; its own reason may quote an exception's text and is not repeated."""
    return f"{ERRORS.get(reply.error.code, 'unknown error')} (Flower error {reply.error.code})"
