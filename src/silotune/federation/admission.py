"""Whether a silo may take part: what it says that it is, and what it may not be."""

from collections.abc import Mapping
from dataclasses import replace

from silotune.errors import AdmissionError, RunError
from silotune.federation.exchange import Answer
from silotune.federation.federation import Federation
from silotune.silo.identity import holds
from silotune.wire.profile import ISOLATIONS, Profile


def names_here(federation: Federation) -> set[str]:
    """Names of the silos that are here, admitted or waiting for it."""
    return {*federation.members.values(), *(profile.silo for profile in federation.guests.values())}


def profile_in(federation: Federation, answer: Answer) -> Profile:
    """What a node says that it is.

    Raises:
        AdmissionError: nothing, or nothing that could take part.
    """
    if answer.content is None:
        raise AdmissionError(answer.problem or "no answer")
    profile = Profile(**answer.content.fields)  # type: ignore[arg-type]
    if not profile.silo or len(profile.silo) > 64 or not profile.silo.isprintable():
        raise AdmissionError("its name is empty, longer than 64 characters, or has characters that cannot be shown")
    if profile.silo in names_here(federation):
        raise AdmissionError(f"a silo called {profile.silo!r} is here already")
    if (profile.key or profile.proof) and not holds(profile.key, profile.proof, federation.job):
        raise AdmissionError("its signature of the job is not that of the key that it shows")
    if not federation.run_context.fixed:  # silos of this machine are the recipe's own, and have no keys
        _require_named(federation.recipe.federation.members, profile)
    if profile.isolation not in ISOLATIONS:
        raise AdmissionError("it says of its isolation what no silo says")
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


def join(federation: Federation, node: int, profile: Profile) -> None:
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
    return replace(profile, threads=0, isolation="", version="", proof="")
