"""Who is in a federation: greeting nodes, admitting silos, and waiting for enough of them.

A node that cannot be admitted is asked again later, after a pause that grows: its silo may have been starting, or
its name may still have been held by the node that it had before.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from silotune.algorithms.interface import Method
from silotune.errors import AdmissionError, FederationError, ModelError, RunError
from silotune.federation import checkpoint
from silotune.federation.events import Event, RunContext
from silotune.federation.exchange import Answer, Asked, Transport, arrivals, not_sent, require_going, send, unnamed
from silotune.federation.run import RunFolder
from silotune.model.adapter import AdapterSpec
from silotune.settings import Recipe
from silotune.silo.identity import holds
from silotune.wire.codecs.interface import Codec
from silotune.wire.envelope import Envelope, shown
from silotune.wire.profile import Profile

PAUSE = 0.1
"""Seconds between two looks for nodes."""
FIRST_RETRY, LONGEST_RETRY = 5.0, 600.0
"""Seconds until a node that could not be admitted is asked again: at first, and at most."""


@dataclass(frozen=True)
class Refusal:
    """A node that could not be admitted."""

    name: str
    reason: str
    pause: float
    until: float
    """When to ask it again, on the monotonic clock."""


@dataclass
class Federation:
    """A federation that is running: what stays fixed, and which silos are known."""

    transport: Transport
    recipe: Recipe
    run: RunFolder
    run_context: RunContext
    spec: AdapterSpec
    method: Method
    codec: Codec
    job: str
    resumed: bool
    """Whether it goes on from a saved state."""
    scored: bool = True
    """Whether silos score the base and the rounds."""
    profiles: dict[str, Profile] = field(default_factory=dict)
    """Every silo that ever joined, by name; one that comes back must bring the same."""
    base: str | None = None
    """Fingerprint of the base model that all must hold; None until it is settled."""
    began: bool = False
    """Whether the first silos are together."""
    members: dict[int, str] = field(default_factory=dict)
    """Names of the silos that are connected, by node."""
    guests: dict[int, Profile] = field(default_factory=dict)
    """Silos that said who they are before the base model was settled, by node."""
    joining: dict[str, Asked] = field(default_factory=dict)
    """Nodes that were asked who they are and have not answered yet."""
    refused: dict[int, Refusal] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    """The last round to which a silo's update counted, by its name."""
    holders: dict[int, str] = field(default_factory=dict)
    """Digest of the adapter that a silo keeps, by its node."""
    clipped: set[str] = field(default_factory=set)
    """Silos of which it has been said that their weight is clipped."""

    def tell(self, kind: str, **fields: object) -> None:
        """Tell whoever watches."""
        self.run_context.watch(Event(kind, fields))


def assemble(federation: Federation, wanted: int | Set[str], seconds: float) -> None:
    """Greet nodes until `wanted` silos are known (so many, or these), nobody else can come, or `seconds` are over.

    Nodes that are still thinking about who they are when enough are known are taken in at the next call.

    Raises:
        FederationError: fewer than the recipe's minimum have come.
        ModelError: as many silos hold one base model as another.
        RunError: the run is being resumed, and a silo holds something else than before.
        Interrupted: the user asked to stop.
    """
    deadline = time.monotonic() + seconds
    while True:
        connected = _greet(federation)
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
    minimum = federation.recipe.federation.minimum
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


def _greet(federation: Federation) -> int:
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
        profile = _profile(federation, answer)
        if federation.base is None:
            federation.guests[answer.node] = profile
        else:
            _join(federation, answer.node, profile)
    except AdmissionError as error:
        _refuse(federation, answer.node, _name_to_tell(federation, answer), str(error))


def _name_to_tell(federation: Federation, answer: Answer) -> str:
    """What to call a node that is refused: the name that it gives, unless that is another's."""
    name = shown(str(answer.content.fields["silo"]))[:64] if answer.content else ""
    return name if name and name not in _names(federation) else unnamed(answer.node)


def _names(federation: Federation) -> set[str]:
    return {*federation.members.values(), *(profile.silo for profile in federation.guests.values())}


def _refuse(federation: Federation, node: int, name: str, reason: str) -> None:
    """Leave a node out until it is asked again; say so where there is something new to say."""
    before = federation.refused.get(node)
    pause = min(2 * before.pause, LONGEST_RETRY) if before else FIRST_RETRY
    federation.refused[node] = Refusal(name, reason, pause, time.monotonic() + pause)
    if before is None or before.reason != reason:
        federation.tell("left_out", silo=name, reason=reason)


def _profile(federation: Federation, answer: Answer) -> Profile:
    """What a node says that it is.

    Raises:
        AdmissionError: nothing, or nothing that could take part.
    """
    if answer.content is None:
        raise AdmissionError(answer.problem or "no answer")
    profile = Profile(**answer.content.fields)  # type: ignore[arg-type]
    if not profile.silo or len(profile.silo) > 64 or not profile.silo.isprintable():
        raise AdmissionError("its name is empty, longer than 64 characters, or has characters that cannot be shown")
    if profile.silo in _names(federation):
        raise AdmissionError(f"a silo called {profile.silo!r} is here already")
    if (profile.key or profile.proof) and not holds(profile.key, profile.proof, federation.job):
        raise AdmissionError("its signature of the job is not that of the key that it shows")
    if not federation.run_context.fixed:  # silos of this machine are the recipe's own, and have no keys
        _require_named(federation.recipe.federation.members, profile)
    if profile.train_rows < 1 or profile.train_loss_tokens < 1:
        raise AdmissionError("it has no rows to train on")
    return profile


def _require_named(members: Mapping[str, str] | None, profile: Profile) -> None:
    """Refuse a silo that the recipe does not name, or names with another key.

    Raises:
        AdmissionError: saying which.
    """
    if members is None:
        return
    if profile.silo not in members:
        raise AdmissionError("federation.members does not name it")
    if members[profile.silo] not in ("", profile.key):
        raise AdmissionError(f"its key, {profile.key or 'none'}, is not the one that federation.members names")


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
            _join(federation, node, profile)
        except AdmissionError as error:
            _refuse(federation, node, profile.silo, str(error))


def _join(federation: Federation, node: int, profile: Profile) -> None:
    """Admit a silo to the federation.

    Raises:
        AdmissionError: its base or rows cannot be accepted.
        RunError: the run is being resumed where all text is, and it holds something else than before.
    """
    before = federation.profiles.get(profile.silo)
    if before is not None and before.key != profile.key:
        raise AdmissionError(f"its key, {profile.key or 'none'}, is not the one with which that name joined this run")
    if before is not None and _kept(before) != _kept(profile):
        # Where anybody may start a node, none ends a run; where all text is on this machine, it has been changed.
        if federation.began or (federation.resumed and not federation.run_context.fixed):
            raise AdmissionError("it holds other rows or another base model than when it joined first")
        if federation.resumed:
            raise RunError(f"silo {profile.silo!r} holds other rows or another base model than when this run began.")
    if profile.fingerprint != federation.base:
        holders = sorted(other.silo for other in federation.profiles.values() if other.fingerprint == federation.base)
        pinned = federation.recipe.model.fingerprint is not None
        others = f"that {', '.join(map(repr, holders[:3]))} hold" if holders else "that the server holds"
        whose = "of model.fingerprint" if pinned else others
        raise AdmissionError(f"its base model is not the one {whose}")
    federation.profiles[profile.silo] = profile
    federation.members[node] = profile.silo
    federation.refused.pop(node, None)
    federation.tell("joined", silo=profile.silo, train_rows=profile.train_rows, test_rows=profile.test_rows,
                    cut=profile.train_cut + profile.test_cut, threads=profile.threads,
                    base=profile.fingerprint, key=profile.key)  # fmt: skip


def _kept(profile: Profile) -> Profile:
    """A profile without what may change between two starts of a silo."""
    return replace(profile, threads=0, version="", proof="")
