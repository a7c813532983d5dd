"""One message to each of some silos, and their answers as they arrive: with a deadline, and in the ledger."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from silotune.errors import AdmissionError, Interrupted
from silotune.federation.events import Venue
from silotune.federation.messages import TYPES, content, envelope, ledger_entry, refused_entry
from silotune.federation.run import RunFolder
from silotune.privacy import ledger
from silotune.wire.envelope import Envelope

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between two looks for answers: short at first and after each answer, then longer."""


ERRORS = {
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION: "the silo's app could not be loaded",
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "the silo's app raised an exception",
    ErrorCode.MESSAGE_UNAVAILABLE: "the message expired or was lost",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "the answer was lost",
    ErrorCode.NODE_UNAVAILABLE: "the silo is not connected any more",
    ErrorCode.CLIENT_APP_CRASHED: "the silo's process died",
}


@dataclass(frozen=True)
class Answer:
    """What came back from a node, or why nothing did."""

    node: int
    content: Envelope | None
    problem: str | None
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class Line:
    """The way to the silos."""

    grid: Grid
    run: RunFolder
    venue: Venue
    most_bytes: int
    """Of an answer's array."""


def exchange(
    line: Line, requests: Mapping[int, Envelope], names: Mapping[int, str], round_: int, seconds: float
) -> Iterator[Answer]:
    """Send each node its request and yield every node's answer or problem, in the order of arrival.

    Nodes are asked in the order of `requests`. A node that has not answered after `seconds` yields a problem; its
    answer, should it come later, is never looked at.

    Raises:
        Interrupted: the user asked to stop.
    """
    waiting, sent = _send(line, requests, names, round_)
    yield from (Answer(node, None, "the message could not be sent", 0, 0) for node in requests.keys() - sent.keys())
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE
    while waiting and time.monotonic() < deadline:
        arrived = list(line.grid.pull_messages(list(waiting)))
        if line.venue.stop.is_set():
            raise Interrupted("Stopped by the user; the last round is saved.")
        for reply in arrived:
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                yield _open(line, reply, requests[node], node, names.get(node, ""), round_, sent[node])
        pause = FIRST_PAUSE if arrived else min(pause * 1.5, LONGEST_PAUSE)
        if waiting and not arrived:
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
    for node in waiting.values():
        yield Answer(node, None, f"no answer within {seconds:g} s", sent[node], 0)


def _send(
    line: Line, requests: Mapping[int, Envelope], names: Mapping[int, str], round_: int
) -> tuple[dict[str, int], dict[int, int]]:
    """Push the requests; return message id to node, and node to bytes sent."""
    waiting: dict[str, int] = {}
    sent: dict[int, int] = {}
    for node, request in requests.items():
        message = Message(content(request), node, TYPES[request.kind], group_id=str(round_))
        entry = ledger_entry(request, message, names.get(node, f"node {node}"), round_)
        # Once each: identical contents are stored once by Flower, and a refusal concerns this node alone.
        for identifier in line.grid.push_messages([message]):
            if identifier:
                waiting[identifier] = node
                sent[node] = entry.bytes
                ledger.append(line.run.ledger_file, entry)
    return waiting, sent


def _open(line: Line, reply: Message, request: Envelope, node: int, name: str, round_: int, sent: int) -> Answer:
    if reply.has_error():
        return Answer(node, None, _error_text(reply), sent, 0)
    try:
        opened = envelope(reply, "up", request.kind, line.most_bytes)
    except AdmissionError as error:
        refused = refused_entry(reply, request.kind, name or f"node {node}", round_, str(error))
        ledger.append(line.run.ledger_file, refused)
        return Answer(node, None, str(error), sent, refused.bytes)
    name = name or str(opened.fields.get("silo", f"node {node}"))[:64]
    entry = ledger_entry(opened, reply, name, round_)
    ledger.append(line.run.ledger_file, entry)
    if opened.failure is not None:
        return Answer(node, None, opened.failure, sent, entry.bytes)
    return Answer(node, opened, None, sent, entry.bytes)


def _error_text(reply: Message) -> str:
    """Flower's error codes in words; its own reason may quote an exception's text and is not repeated."""
    return f"{ERRORS.get(reply.error.code, 'unknown error')} (Flower error {reply.error.code})"
