"""Who is in a federation: greeting nodes, admitting silos, and waiting for enough of them."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

from silotune.algorithms.interface import Algorithm
from silotune.errors import AdmissionError, FederationError, Interrupted, RunError
from silotune.federation.checkpoint import Profile
from silotune.federation.events import Event, Venue
from silotune.federation.exchange import Answer, Line, exchange
from silotune.federation.run import RunFolder
from silotune.model.adapter import AdapterSpec
from silotune.settings import Recipe
from silotune.wire.envelope import Envelope


@dataclass
class Federation:
    """A federation that is running: what stays fixed, and which silos are known."""

    line: Line
    recipe: Recipe
    run: RunFolder
    venue: Venue
    spec: AdapterSpec
    algorithm: Algorithm
    job: str
    profiles: dict[str, Profile] = field(default_factory=dict)
    """Every silo that ever joined, by name; one that comes back must bring the same."""
    members: dict[int, str] = field(default_factory=dict)
    """Names of the silos that are connected, by node."""
    refused: set[int] = field(default_factory=set)
    """Nodes that said hello in vain."""

    def tell(self, kind: str, **fields: Any) -> None:
        """Tell whoever watches."""
        self.venue.watch(Event(kind, fields))


PAUSE = 0.1
"""Seconds between two looks for nodes."""


def assemble(federation: Federation, wanted: int, seconds: float) -> None:
    """Greet nodes until `wanted` silos are known, nobody else can come, or `seconds` are over.

    Raises:
        FederationError: fewer than the recipe's minimum have come.
    """
    deadline = time.monotonic() + seconds
    while True:
        connected = _greet(federation, max(1.0, deadline - time.monotonic()))
        complete = federation.venue.fixed and connected >= federation.venue.expected
        if len(federation.members) >= wanted or complete or time.monotonic() >= deadline:
            break
        if federation.venue.stop.is_set():
            raise Interrupted("Stopped by the user; the last round is saved.")
        time.sleep(PAUSE)
    minimum = federation.recipe.federation.minimum
    if len(federation.members) < minimum:
        raise FederationError(
            f"{len(federation.members)} silos are here, federation.minimum asks for {minimum}. "
            "What was reached is saved, to go on with when more silos can take part."
        )


def _greet(federation: Federation, seconds: float) -> int:
    """Drop nodes that are gone; ask new ones who they are and what they hold. Returns how many are connected."""
    connected = set(federation.line.grid.get_node_ids())
    for node in federation.members.keys() - connected:
        federation.tell("left_out", silo=federation.members.pop(node), reason="disconnected")
    new = sorted(connected - federation.members.keys() - federation.refused)
    requests = {node: Envelope("down", "hello", {"job": federation.job}) for node in new}
    for answer in exchange(federation.line, requests, {}, 0, seconds):
        try:
            _join(federation, answer)
        except AdmissionError as error:
            federation.refused.add(answer.node)
            known = answer.content.fields["silo"] if answer.content else None
            federation.tell("left_out", silo=known or f"node {answer.node}", reason=str(error))
    return len(connected)


def _join(federation: Federation, answer: Answer) -> None:
    """Admit a silo to the federation.

    Raises:
        AdmissionError: it failed, or its name, base or rows cannot be accepted.
        RunError: it is known, and holds something else than before.
    """
    if answer.content is None:
        raise AdmissionError(answer.problem or "no answer")
    profile = Profile(**answer.content.fields)  # type: ignore[arg-type]
    if not profile.silo or len(profile.silo) > 64 or not profile.silo.isprintable():
        raise AdmissionError("its name is empty, longer than 64 characters, or has characters that cannot be shown")
    if profile.silo in federation.members.values():
        raise AdmissionError(f"a silo called {profile.silo!r} is here already")
    if profile.train_rows < 1 or profile.train_loss_tokens < 1:
        raise AdmissionError("it has no rows to train on")
    before = federation.profiles.get(profile.silo)
    if before is not None and _kept(before) != _kept(profile):
        raise RunError(f"silo {profile.silo!r} holds other rows or another base model than when this run began.")
    for other in federation.profiles.values():
        if other.fingerprint != profile.fingerprint:
            raise AdmissionError(f"its base model is not the one that {other.silo!r} holds")
    federation.profiles[profile.silo] = profile
    federation.members[answer.node] = profile.silo
    federation.tell("joined", silo=profile.silo, train_rows=profile.train_rows, test_rows=profile.test_rows,
                    cut=profile.train_cut + profile.test_cut, threads=profile.threads)  # fmt: skip


def _kept(profile: Profile) -> Profile:
    """A profile without what may change between two starts of a silo."""
    return replace(profile, threads=0, version="")
