"""A finished run's silos train alone, each where its text lies, and say how that does on their own held-out rows.

What a comparison needs and a deployment cannot give otherwise: the model that a silo makes alone is not sent, and
nobody tests it on another silo's rows. Each takes as many rounds as it took part in, from the same start (but for
what a codec took of the server's), with the same batch, steps, learning rate and course as in the federation.
"""

import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import asdict
from pathlib import Path

from flwr.serverapp import Grid

from silotune import atomic
from silotune.errors import AdmissionError, RunError
from silotune.federation import checkpoint
from silotune.federation.events import RunContext
from silotune.federation.exchange import Answer, exchange
from silotune.federation.federation import Federation
from silotune.federation.members import assemble
from silotune.federation.result import adapter_spec
from silotune.federation.run import RunFolder
from silotune.federation.server import opened
from silotune.federation.spent import Spent, spent_by
from silotune.wire.envelope import Envelope, shown
from silotune.wire.profile import Alone, Profile


def ask(grid: Grid, run: RunFolder, run_context: RunContext) -> tuple[Mapping[str, Alone], Mapping[str, str]]:
    """Have every silo of a finished run train alone; what it says is kept in RUN/compare and not asked again.

    A silo that did not score the last round has nothing to be held against: it is not asked. One that holds other rows
    or another base than in the run is left out like one that is away.

    Args:
        grid: Flower's way to the silos.
        run: its folder; the messages go into its ledger, after the last round.
        run_context: who watches, how the run is stopped, and where its scratch folder is.

    Returns:
        What silos said, by name, and why there is nothing of others.

    Raises:
        RunError: the run is not finished.
        Interrupted: the user asked to stop; what was said is kept.
    """
    recipe, saved = run.recipe(), checkpoint.latest(run)
    if saved is None or not run.finished():
        raise RunError(f"{run.path}: the run is not finished, so there is nothing to compare. Go on with it first.")
    lines = run.metrics()
    spent = spent_by(lines)
    last = [line for line in lines if line["evaluation"] and line["round"] == recipe.training.rounds]
    scored = {line["silo"] for line in last if line["silo"] is not None}
    missing = {name: why for name, profile in saved.profiles.items() if (why := _no_use(profile, spent, scored))}
    with opened(grid, recipe, run, run_context, adapter_spec(recipe), saved) as federation:
        told = {name: one for name in saved.profiles.keys() - missing.keys()
                if (one := _kept(federation, name, spent[name]))}  # fmt: skip
        wanted = {name: spent[name] for name in saved.profiles.keys() - missing.keys() - told.keys()}
        if wanted:
            federation.began = True  # who holds other rows now is left out, as if it had come back in a round
            # Whoever comes is asked: a single silo's row is worth having, and rows may have been told before.
            assemble(federation, wanted.keys(), recipe.federation.join_timeout, minimum=0)
            found, failed = _exchanged(federation, wanted)
            told, missing = told | found, missing | failed
    return dict(sorted(told.items())), dict(sorted(missing.items()))


def _no_use(profile: Profile, spent: Mapping[str, Spent], scored: Set[str]) -> str | None:
    """Why a silo's own model could not be compared; None where it can."""
    if profile.silo not in spent:
        return "it took part in no round"
    if not profile.test_loss_tokens:
        return "it holds out no rows"
    return None if profile.silo in scored else "it did not score the last round"


def _exchanged(federation: Federation, wanted: Mapping[str, Spent]) -> tuple[dict[str, Alone], dict[str, str]]:
    """Ask those of some silos that are here, and keep what each says when it says it."""
    names = {node: name for node, name in federation.members.items() if name in wanted}
    refused = {refusal.name: refusal.reason for refusal in federation.refused.values()}
    told: dict[str, Alone] = {}
    missing = {name: refused.get(name, "it did not join") for name in wanted.keys() - set(names.values())}
    requests = {
        node: Envelope("down", "alone", {"job": federation.job, "rounds": wanted[name].rounds})
        for node, name in names.items()
    }
    for name in sorted(names.values()):
        federation.tell("asked", silo=name, rounds=wanted[name].rounds)
    # A round's time for each round, and one for the scoring.
    seconds = federation.recipe.federation.round_timeout * (max(each.rounds for each in wanted.values()) + 1)
    for answer in exchange(federation.transport, requests, names, federation.recipe.training.rounds + 1, seconds):
        name = names[answer.node]
        try:
            told[name] = _admit(answer, federation.profiles[name], wanted[name])
            _keep(federation, name, wanted[name], told[name])
            federation.tell("answered", silo=name, **asdict(told[name]))
        except AdmissionError as error:
            missing[name] = shown(str(error))
            federation.tell("left_out", silo=name, reason=missing[name])
    return told, missing


def _admit(answer: Answer, profile: Profile, spent: Spent) -> Alone:
    """What a silo said, if it can be.

    Raises:
        AdmissionError: it said nothing, or nothing that can be true.
    """
    if answer.content is None:
        raise AdmissionError(answer.problem or "no answer")
    told = Alone(**answer.content.fields)  # type: ignore[arg-type]
    if (told.rows, told.tokens) != (profile.test_rows, profile.test_loss_tokens):
        raise AdmissionError("it scored other rows than it announced when it joined")
    if told.correct > told.tokens:
        raise AdmissionError(f"it says that {told.correct} of {told.tokens} tokens were right")
    if told.steps != spent.steps:
        raise AdmissionError(f"it took {told.steps} steps alone, and {spent.steps} in the run")
    if not 0 < told.train_loss_tokens <= told.train_tokens:
        raise AdmissionError("it trained on nothing")
    return told


# ------------------------------------------------------------------------------------------------- what was told


def _file(federation: Federation, silo: str, spent: Spent) -> Path:
    """Where a silo's figures are kept: the name depends on all that they depend on."""
    profile = federation.profiles[silo]
    depends = [federation.job, silo, spent.rounds, spent.steps, profile.fingerprint, profile.train_rows,
               profile.train_tokens, profile.test_rows, profile.test_loss_tokens]  # fmt: skip
    digest = hashlib.blake2b(json.dumps(depends).encode(), digest_size=10).hexdigest()
    return federation.run.path / "compare" / f"told-{digest}.json"


def _keep(federation: Federation, silo: str, spent: Spent, told: Alone) -> None:
    file = _file(federation, silo, spent)
    file.parent.mkdir(exist_ok=True)
    atomic.write_text(file, json.dumps(asdict(told)))


def _kept(federation: Federation, silo: str, spent: Spent) -> Alone | None:
    """What a silo said before; None where there is nothing that can be used, so that it is asked again."""
    try:
        fields = json.loads(_file(federation, silo, spent).read_text(encoding="utf-8"))
        answer = Answer(0, Envelope("up", "alone", fields), None, 0, 0)
        return _admit(answer, federation.profiles[silo], spent)
    except (OSError, ValueError, TypeError, AdmissionError):
        return None
