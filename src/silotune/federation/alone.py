"""A finished run's silos train alone, each where its text lies, and say how that does on their own held-out rows.

What a comparison needs and a deployment cannot give otherwise: the model that a silo makes alone is not sent, and
nobody tests it on another silo's rows. Each takes as many rounds as it took part in, from the same start, with the
same batch, steps, learning rate and course as in the federation.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from flwr.serverapp import Grid

from silotune import atomic
from silotune.data.files import printable
from silotune.errors import AdmissionError, RunError
from silotune.federation import checkpoint
from silotune.federation.baselines import spent_by
from silotune.federation.events import Venue
from silotune.federation.exchange import Answer, exchange
from silotune.federation.members import Federation, assemble
from silotune.federation.result import adapter_spec
from silotune.federation.run import RunFolder
from silotune.federation.server import opened
from silotune.wire.envelope import Envelope, shown
from silotune.wire.profile import Alone, Profile


def ask(grid: Grid, run: RunFolder, venue: Venue) -> tuple[Mapping[str, Alone], Mapping[str, str]]:
    """Have every silo of a finished run train alone; what it says is kept in RUN/compare and not asked again.

    Args:
        grid: Flower's way to the silos.
        run: its folder; the messages go into its ledger.
        venue: circumstances.

    Returns:
        What silos said, by name, and why there is nothing of others.

    Raises:
        RunError: the run is not finished, a silo holds other rows or another base than when it was made, or what a silo
            said before cannot be read.
        FederationError: no silo has come.
        Interrupted: the user asked to stop; what was said is kept.
    """
    recipe, saved = run.recipe(), checkpoint.latest(run)
    if saved is None or not run.finished():
        raise RunError(f"{run.path}: the run is not finished, so there is nothing to compare. Go on with it first.")
    rounds = {name: spent.rounds for name, spent in spent_by(run.metrics()).items()}
    missing = {name: "it took part in no round" for name in saved.profiles if name not in rounds}
    untested = [name for name, profile in saved.profiles.items() if not profile.test_loss_tokens]
    missing |= dict.fromkeys(untested, "it holds out no rows")
    told = {name: one for name in saved.profiles.keys() - missing.keys() if (one := _kept(run, name))}
    wanted = saved.profiles.keys() - missing.keys() - told.keys()
    if wanted:
        recipe = recipe.model_copy(update={"federation": recipe.federation.model_copy(update={"minimum": 1})})
        with opened(grid, recipe, run, venue, adapter_spec(recipe), saved) as federation:
            assemble(federation, len(saved.profiles), recipe.federation.join_timeout)
            found, failed = _exchanged(federation, {name: rounds[name] for name in wanted})
            told, missing = told | found, missing | failed
    return dict(sorted(told.items())), dict(sorted(missing.items()))


def _exchanged(federation: Federation, rounds: Mapping[str, int]) -> tuple[dict[str, Alone], dict[str, str]]:
    """Ask those of some silos that are here, and keep what each says when it says it."""
    names = {node: name for node, name in federation.members.items() if name in rounds}
    told: dict[str, Alone] = {}
    missing = dict.fromkeys(rounds.keys() - set(names.values()), "it is not connected")
    requests = {
        node: Envelope("down", "alone", {"job": federation.job, "rounds": rounds[name]}) for node, name in names.items()
    }
    for name in sorted(names.values()):
        federation.tell("asked", silo=name, rounds=rounds[name])
    each_round = federation.recipe.federation.round_timeout
    last = federation.recipe.training.rounds
    for answer in exchange(federation.line, requests, names, last, each_round * (max(rounds.values()) + 1)):
        name = names[answer.node]
        try:
            told[name] = _admit(answer, federation.profiles[name])
            atomic.write_text(_file(federation.run, name), json.dumps(asdict(told[name])))
            federation.tell("answered", silo=name, **asdict(told[name]))
        except AdmissionError as error:
            missing[name] = shown(str(error))
            federation.tell("left_out", silo=name, reason=missing[name])
    return told, missing


def _admit(answer: Answer, profile: Profile) -> Alone:
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
    if not told.steps or not 0 < told.train_loss_tokens <= told.train_tokens:
        raise AdmissionError("it trained on nothing")
    return told


def _file(run: RunFolder, silo: str) -> Path:
    """Where a silo's figures are kept, whatever characters its name has."""
    folder = run.path / "compare"
    folder.mkdir(exist_ok=True)
    return folder / f"told-{hashlib.blake2b(silo.encode(), digest_size=10).hexdigest()}.json"


def _kept(run: RunFolder, silo: str) -> Alone | None:
    file = _file(run, silo)
    if not file.exists():
        return None
    try:
        return Alone(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise RunError(f"{file}: cannot be read. Remove it, and silo {printable(silo)!r} is asked again.") from None
