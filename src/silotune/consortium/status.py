"""How a consortium is: who is there, and what the run that goes on waits for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from silotune.consortium import membership
from silotune.consortium.folder import Consortium, now_running
from silotune.errors import SilotuneError
from silotune.federation.run import RunFolder


@dataclass(frozen=True)
class MemberStatus:
    """A member, as the coordinator sees it."""

    name: str
    state: str
    """`online`, `away`, `never came`, or `invited`."""
    since: str
    """Since when it is there, until when it was, or until when its invitation holds; ISO 8601, UTC, or empty."""
    waits_for: str
    """What it has been asked for and has not answered yet."""
    fingerprint: str


@dataclass(frozen=True)
class Status:
    """A consortium."""

    members: Sequence[MemberStatus]
    run: Path | None
    """The folder of the run that goes on."""
    round: int
    """That it works on; 0 before the first."""
    rounds: int
    paused: bool


def status(consortium: Consortium) -> Status:
    """Look at a consortium.

    Raises:
        FederationError: its SuperLink does not answer.
        InputError: its folder cannot be read.
    """
    book, nodes = membership.read(consortium), {node.number: node for node in consortium.link.nodes()}
    run = now_running(consortium)
    asked, round_, rounds = _asked(run) if run is not None else ({}, 0, 0)
    found = []
    for member in sorted(book.members.values(), key=lambda one: one.name):
        node = nodes.get(member.number)
        state, since = "never came", ""
        if node is not None and node.status == "online":
            state, since = "online", node.activated
        elif node is not None and node.activated:
            state, since = "away", datetime.fromtimestamp(node.seen_until, UTC).isoformat(timespec="seconds")
        mark = membership.fingerprint(member.node_key, member.silo_key)
        found.append(MemberStatus(member.name, state, since, asked.get(member.name, ""), mark))
    found += [MemberStatus(one.name, "invited", one.until, "", "") for one in book.invited.values()]
    return Status(found, run, round_, rounds, consortium.paused)


def _asked(run: Path) -> tuple[Mapping[str, str], int, int]:
    """(what each silo was asked for and has not answered, the round, rounds in all), from the run's own books."""
    folder, waiting, round_ = RunFolder(run), {}, 0
    try:
        rounds = folder.recipe().training.rounds
        lines = folder.ledger_file.read_text(encoding="utf-8").splitlines()
    except (OSError, SilotuneError):
        return {}, 0, 0
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # being written
        round_ = max(round_, int(entry["round"]))
        if entry["direction"] == "down":
            waiting[entry["silo"]] = f"{entry['kind']}, round {entry['round']}"
        else:
            waiting.pop(entry["silo"], None)
    return waiting, round_, rounds
