"""Who is in a federation: asking nodes to join, and waiting for enough of them.

A node that cannot be admitted is asked again later, after a pause that grows: its silo may have been starting, or
its name may still have been held by the node that it had before.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import replace

from silotune.errors import AdmissionError, FederationError, ModelError
from silotune.federation import checkpoint
from silotune.federation.admission import join, names_here, profile_in
from silotune.federation.exchange import Answer, arrivals, not_sent, require_going, send, unnamed
from silotune.federation.federation import Federation, Refusal
from silotune.wire.envelope import Envelope, shown

PAUSE = 0.1
"""Seconds between two looks for nodes."""
FIRST_RETRY, LONGEST_RETRY = 5.0, 600.0
"""Seconds until a node that could not be admitted is asked again: at first, and at most."""


def assemble(federation: Federation, wanted: int | Set[str], seconds: float, minimum: int | None = None) -> None:
    """Ask nodes to join until `wanted` silos are known (so many, or these), no others can come, or `seconds` are over.

    Nodes that are still thinking about who they are when enough are known are taken in at the next call.

    Args:
        federation: to ask for.
        wanted: how many silos, or which.
        seconds: to wait at most.
        minimum: that must have come; None: the recipe's.

    Raises:
        FederationError: fewer than the minimum have come.
        ModelError: as many silos hold one base model as another.
        RunError: the run is being resumed, and a silo holds something else than before.
        Interrupted: the user asked to stop.
    """
    deadline = time.monotonic() + seconds
    while True:
        connected = _ask_to_join(federation)
        nobody_else = (
            federation.run_context.fixed and connected >= federation.run_context.expected and not federation.joining
        )
        over = nobody_else or time.monotonic() >= deadline
        if federation.base is None and (over or _enough((each.silo for each in federation.guests.values()), wanted)):
            others = bool(federation.joining) or not federation.run_context.fixed
            _settle(federation, others_may_answer=others and not over)
        if over or _enough(federation.members.values(), wanted):
            break
        require_going(federation.transport)
        time.sleep(PAUSE)
    minimum = federation.recipe.federation.minimum if minimum is None else minimum
    if len(federation.members) < minimum:
        why = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in list(federation.refused.values())[:5])
        raise FederationError(
            f"{len(federation.members)} silos are here, federation.minimum asks for {minimum}"
            f"{f' ({why})' if why else ''}; {checkpoint.reached(federation.run)}."
        )
    federation.began = True


def _enough(names: Iterable[str], wanted: int | Set[str]) -> bool:
    known = set(names)
    return len(known) >= wanted if isinstance(wanted, int) else wanted <= known


def _ask_to_join(federation: Federation) -> int:
    """Drop nodes that are gone, ask new ones who they are, hear those that answer. Returns how many are connected."""
    connected = set(federation.transport.grid.get_node_ids())
    _drop(federation, connected)
    now = time.monotonic()
    thinking = {asked.node for asked in federation.joining.values()}
    paused = {node for node, refusal in federation.refused.items() if refusal.until > now}
    new = sorted(connected - federation.members.keys() - federation.guests.keys() - thinking - paused)
    requests = {node: Envelope("down", "join", {"job": federation.job}) for node in new}
    asked = send(federation.transport, requests, {}, 0, federation.recipe.federation.join_timeout)
    federation.joining.update(asked)
    reached = {each.node for each in asked.values()}
    for node in new:
        if node not in reached:
            _hear(federation, not_sent(node))
    heard = True
    while heard:
        heard = False
        for answer in arrivals(federation.transport, federation.joining):
            _hear(federation, answer)
            heard = True
        require_going(federation.transport)
    return len(connected)


def _drop(federation: Federation, connected: set[int]) -> None:
    """Forget nodes that are gone; a name that is free again may be what another node was refused for."""
    for node in federation.members.keys() - connected:
        federation.tell("left_out", silo=federation.members.pop(node), reason="disconnected")
        federation.refused = {other: replace(refusal, until=0.0) for other, refusal in federation.refused.items()}
    for gone in (federation.guests.keys() - connected, federation.refused.keys() - connected):
        for node in gone:
            federation.guests.pop(node, None)
            federation.refused.pop(node, None)
    for identifier, asked in list(federation.joining.items()):
        if asked.node not in connected:
            federation.transport.late[identifier] = federation.joining.pop(identifier)


def _hear(federation: Federation, answer: Answer) -> None:
    """Admit a silo, have it wait until the base model is settled, or refuse it."""
    try:
        profile = profile_in(federation, answer)
        if federation.base is None:
            federation.guests[answer.node] = profile
        else:
            join(federation, answer.node, profile)
    except AdmissionError as error:
        _refuse(federation, answer.node, _name_to_tell(federation, answer), str(error))


def _name_to_tell(federation: Federation, answer: Answer) -> str:
    """What to call a node that is refused: a member's by its name, another by that which it gives, unless that is
    another's."""
    if known := federation.run_context.called(answer.node):
        return known
    name = shown(str(answer.content.fields["silo"]))[:64] if answer.content else ""
    return name if name and name not in names_here(federation) else unnamed(answer.node)


def _refuse(federation: Federation, node: int, name: str, reason: str) -> None:
    """Leave a node out until it is asked again; say so where there is something new to say."""
    before = federation.refused.get(node)
    pause = min(2 * before.pause, LONGEST_RETRY) if before else FIRST_RETRY
    federation.refused[node] = Refusal(name, reason, pause, time.monotonic() + pause)
    if before is None or before.reason != reason:
        federation.tell("left_out", silo=name, reason=reason)


def _settle(federation: Federation, others_may_answer: bool) -> None:
    """Take the base model that most of the guests hold, and admit those that hold it; a tie waits for other guests.

    Raises:
        ModelError: there is a tie, and no others will answer.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for profile in federation.guests.values():
        groups[profile.fingerprint].append(profile.silo)
    ordered = sorted(groups.values(), key=len, reverse=True)
    tie = len(ordered) > 1 and len(ordered[0]) == len(ordered[1])
    if not ordered or (tie and others_may_answer):
        return
    if tie:
        held = " | ".join(", ".join(sorted(names)) for names in ordered)
        raise ModelError(f"the silos hold different base models, none of them most of the silos: {held}. "
                         "Give all of them the same and start again.")  # fmt: skip
    federation.base = max(groups, key=lambda fingerprint: len(groups[fingerprint]))
    guests, federation.guests = federation.guests, {}
    for node, profile in sorted(guests.items(), key=lambda guest: guest[1].fingerprint != federation.base):
        try:
            join(federation, node, profile)
        except AdmissionError as error:
            _refuse(federation, node, profile.silo, str(error))
