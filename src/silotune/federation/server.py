"""The round loop: ask a cohort, take updates as they arrive, admit or leave out, aggregate, apply, evaluate, save.

All mathematics is the method's, the aggregation's and the server optimizer's; all transport is behind Flower's `Grid`.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import cast

import numpy as np
from flwr.serverapp import Grid

from silotune import algorithms
from silotune.aggregation.collectors import collector_of
from silotune.aggregation.interface import Aggregate, Ask, Cohort, Contribution, Round, collect
from silotune.algorithms.interface import Arrays, ServerState
from silotune.algorithms.server_optimizers import optimizer_of
from silotune.data.seeds import derive
from silotune.errors import AdmissionError, DivergedError, FederationError
from silotune.federation import checkpoint
from silotune.federation.checkpoint import Saved
from silotune.federation.events import RunContext
from silotune.federation.exchange import Answer, Transport, enter_late, exchange
from silotune.federation.inline import InlineGrid
from silotune.federation.members import Federation, assemble
from silotune.federation.metrics import Evaluation, SiloLine, TrainFigures, figures, round_line, silo_line
from silotune.federation.run import RunFolder
from silotune.model.adapter import AdapterSpec, AdapterState
from silotune.model.base import public_name
from silotune.settings import Job, Recipe
from silotune.wire import codecs, manifest
from silotune.wire.codecs.interface import Codec
from silotune.wire.envelope import Envelope, Kind, shown
from silotune.wire.profile import Profile


def federate(
    grid: Grid, recipe: Recipe, run: RunFolder, run_context: RunContext, spec: AdapterSpec, *, scored: bool = True
) -> ServerState:
    """Run a federation to its last round, from its start or from the last saved state, and return the final state.

    Args:
        grid: Flower's way to the silos.
        recipe: of the run.
        run: its folder; a saved state in it is gone on from.
        run_context: who watches, how the run is stopped, and where its scratch folder is.
        spec: names and shapes of the adapter.
        scored: whether silos score base and rounds on their held-out rows; a comparison scores all models itself.

    Raises:
        FederationError: too few silos; what was reached is saved.
        Interrupted: the user asked to stop; what was reached is saved.
        RunError: silos hold other data or another base than when the run that is resumed began.
        ModelError: the silos do not agree on a base.
    """
    saved = checkpoint.latest(run)
    checkpoint.require_sound(run, saved, spec)
    checkpoint.rewind(run, saved)
    with opened(grid, recipe, run, run_context, spec, saved) as federation:
        federation.scored = scored
        return _run(federation, saved)


@contextmanager
def opened(
    grid: Grid, recipe: Recipe, run: RunFolder, run_context: RunContext, spec: AdapterSpec, saved: Saved | None
) -> Iterator[Federation]:
    """A run's federation for as long as it is worked with; what comes too late until then is in the ledger."""
    profiles = dict(saved.profiles) if saved else {}
    method = algorithms.find(recipe.federation.algorithm)
    # An update of the right size, and as much again: a wrong one is then refused for what it is.
    most_bytes = 8 * (spec.size + method.beside(spec).size)
    transport = Transport(grid, run, run_context, most_bytes, in_turn=isinstance(grid, InlineGrid))
    federation = Federation(
        transport, recipe, run, run_context, spec, method, codecs.find(recipe.wire.codec),
        _job(recipe, run.identity()).model_dump_json(),
        resumed=saved is not None, profiles=profiles,
        base=recipe.model.fingerprint or next((profile.fingerprint for profile in profiles.values()), None),
    )  # fmt: skip
    try:
        yield federation
    finally:
        transport.late.update(federation.hellos)
        enter_late(transport)


def _run(federation: Federation, saved: Saved | None) -> ServerState:
    recipe, spec = federation.recipe, federation.spec
    federation.tell("start", rounds=recipe.training.rounds, done=saved.state.round if saved else 0,
                    parameters=spec.size,
                    adapter_bytes=federation.codec.bytes(federation.method.sent(spec).size))  # fmt: skip
    # Before anybody is waited for: a method may find that the settings do not fit it.
    start = federation.method.start(spec, derive(recipe.seed, "adapter"))
    state = saved.state if saved else sendable(ServerState(0, start), federation.method.sent(spec), federation.codec)
    assemble(
        federation, max(federation.run_context.expected, recipe.federation.minimum), recipe.federation.join_timeout
    )
    if saved is None:
        _finish_round(federation, state, None, {}, time.monotonic())
    while state.round < recipe.training.rounds:
        state = _round(federation, state)
    return state


def _job(recipe: Recipe, identity: str) -> Job:
    return Job(
        name=recipe.name,
        run=identity,
        seed=recipe.seed,
        base=public_name(recipe.model.base),
        lora=recipe.lora,
        max_length=recipe.data.max_length,
        system=recipe.data.system,
        training=recipe.training,
        holdout=recipe.data.holdout,
        algorithm=recipe.federation.algorithm,
        codec=recipe.wire.codec,
    )


# ------------------------------------------------------------------------------------------- one round


def choose_cohort(names: list[str], share: float, minimum: int, seed: int, round_: int) -> list[str]:
    """Draw a round's cohort from the silos that are here: a function of the seed, the round and the names.

    Args:
        names: of the silos that are here.
        share: to ask, in (0, 1].
        minimum: to ask at least.
        seed: of the run.
        round_: from 1.

    Returns:
        Names, sorted.
    """
    count = min(len(names), max(minimum, math.ceil(share * len(names) - 1e-9)))
    drawn = np.random.default_rng(derive(seed, "cohort", round_)).choice(sorted(names), size=count, replace=False)
    return sorted(str(name) for name in drawn)


def bounded(weights: Mapping[str, int], most: float) -> dict[str, int]:
    """Weights of which none is more than a share of the sum of those that are asked, where those are more than two.

    What is beyond it is clipped to the largest weight that keeps to the share: silos declare their own counts.
    """
    if len(weights) < 3:
        return dict(weights)
    ordered, share, bound = sorted(weights.values(), reverse=True), Fraction(str(most)), 0
    for clipped, largest in enumerate(ordered):
        if share * clipped >= 1:
            break
        # With the largest clipped to c: c = share (clipped c + the sum of the others).
        bound = math.floor(share * sum(ordered[clipped:]) / (1 - share * clipped))
        if largest <= bound:
            return {name: min(weight, bound) for name, weight in weights.items()}
    return dict.fromkeys(weights, ordered[-1])  # no weights keep to a share below an equal one


def _weight(profile: Profile, how: str) -> int:
    return {"examples": profile.train_rows, "tokens": profile.train_loss_tokens, "uniform": 1}[how]


def _round(federation: Federation, state: ServerState) -> ServerState:
    """One round, saved.

    Raises:
        FederationError: fewer updates than the recipe's minimum could be used.
    """
    settings = federation.recipe.federation
    began, round_ = time.monotonic(), state.round + 1
    assemble(federation, settings.minimum, settings.round_timeout)
    names = choose_cohort(list(federation.members.values()), settings.cohort, settings.minimum,
                          federation.recipe.seed, round_)  # fmt: skip
    declared = {name: _weight(federation.profiles[name], settings.weights) for name in names}
    cohort = Cohort(bounded(declared, settings.max_share))
    federation.tell("round_start", round=round_, cohort=names)
    for name, weight in cohort.weights.items():
        if weight < declared[name] and name not in federation.clipped:
            federation.clipped.add(name)
            federation.tell("remark", text=f"silo {name} declares a weight of {declared[name]}; it counts as {weight}, "
                                           f"for federation.max_share is {settings.max_share:g}")  # fmt: skip
    lines: dict[str, SiloLine] = {}
    trainable, beside = federation.method.trainable(federation.spec, round_), federation.method.beside(federation.spec)
    started = Round(state.adapter, trainable, cohort, beside)

    def ask(wanted: Ask) -> Iterator[Contribution]:
        assert wanted.stage == "train", "the wire has no other stage"
        return _contributions(federation, state, started, lines)

    aggregate = collect(collector_of(settings), started, ask)
    arrived = len(aggregate.silos) if aggregate else 0
    if aggregate is None or arrived < settings.minimum:
        _write_lines(federation, lines)
        reasons = {name: line["reason"] for name, line in sorted(lines.items()) if line["reason"]}
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        if reasons and all(_diverged(reason) for reason in reasons.values()):
            raise DivergedError(
                f"round {round_}: no update has finite numbers ({why}); {checkpoint.reached(federation.run)}. Lower "
                "training.learning_rate and start a new run: with the same settings the same would happen again."
            )
        raise FederationError(
            f"round {round_}: {arrived} of {len(names)} updates could be used, federation.minimum asks for "
            f"{settings.minimum} ({why}); {checkpoint.reached(federation.run)}."
        )
    update = {name: aggregate.update[name] for name in trainable}
    after = optimizer_of(settings).apply(unrounded(state), update)
    controls = _controls(federation, state, aggregate)
    after = replace(after, slots={**after.slots, **controls})
    if not all(np.isfinite(value).all() for value in after.adapter.values()):
        raise DivergedError(
            f"round {round_}: the new adapter is not finite; {checkpoint.reached(federation.run)}. Lower "
            "training.learning_rate and federation.server_rate, and start a new run."
        )
    after = sendable(after, federation.method.sent(federation.spec), federation.codec)
    largest = max(float(np.abs(value).max()) for value in after.adapter.values())
    if largest > manifest.MAX_MAGNITUDE:
        raise DivergedError(
            f"round {round_}: the new adapter holds a number beyond {manifest.MAX_MAGNITUDE:g}, which no silo would "
            f"take; {checkpoint.reached(federation.run)}. Lower training.learning_rate and federation.server_rate, and "
            "start a new run."
        )
    _finish_round(federation, after, aggregate, lines, began)
    return after


def _controls(federation: Federation, state: ServerState, aggregate: Aggregate | None = None) -> Arrays:
    """The method's control variates, 0 until a round has changed them; with an aggregate, those after its round."""
    beside = federation.method.beside(federation.spec)
    before = {name: state.slots.get(name, np.zeros(shape, np.float32)) for name, shape in beside.shapes}
    if aggregate is None:
        return before
    settings = federation.recipe.federation
    declared = {name: _weight(federation.profiles[name], settings.weights) for name in federation.members.values()}
    weights = bounded(declared, settings.max_share)
    share = np.float32(sum(weights[name] for name in aggregate.silos) / sum(weights.values()))
    return {name: value + share * aggregate.update[name] for name, value in before.items()}


ROUNDING = "rounding/"
"""Before the names of tensors, in the server's slots: what the codec took of the adapter."""


def sendable(state: ServerState, sent: AdapterSpec, codec: Codec) -> ServerState:
    """A state whose adapter is one that the codec can say: what silos start from, score, and are left with at the end.

    What rounding takes of it is kept in the slots, and returned to it before the next round's update is applied.
    """
    if codec.lossless:
        return state
    exact = {name: state.adapter[name] for name in sent.names}
    said = manifest.rounded(exact, codec)
    lost = {ROUNDING + name: exact[name] - said[name] for name in exact}
    return replace(state, adapter={**state.adapter, **said}, slots={**state.slots, **lost})


def unrounded(state: ServerState) -> ServerState:
    """The inverse of `sendable`."""
    lost = {name.removeprefix(ROUNDING): value for name, value in state.slots.items() if name.startswith(ROUNDING)}
    slots = {name: value for name, value in state.slots.items() if not name.startswith(ROUNDING)}
    exact = {name: state.adapter[name] + value for name, value in lost.items()}
    return replace(state, adapter={**state.adapter, **exact}, slots=slots)


def _diverged(reason: str) -> bool:
    """Whether a silo was left out because its numbers are none."""
    return any(words in reason for words in ("is not finite", "holds NaN", "holds infinite numbers"))


def _contributions(
    federation: Federation, state: ServerState, started: Round, lines: dict[str, SiloLine]
) -> Iterator[Contribution]:
    """Ask the cohort, heaviest silo first; yield what may be used and note for every silo how it went."""
    cohort = started.cohort
    nodes = {name: node for node, name in federation.members.items()}
    ordered = sorted(cohort.weights, key=lambda name: (-federation.profiles[name].train_tokens, name))
    names = {nodes[name]: name for name in ordered}
    for name in ordered:
        federation.tell("asked", silo=name, round=state.round + 1)
    sent = {**state.adapter, **_controls(federation, state)}
    for answer in exchange(
        federation.transport, dict.fromkeys(names, _with_adapter(federation, "train", state.round + 1, sent)), names,
        state.round + 1, federation.recipe.federation.round_timeout,
    ):  # fmt: skip
        name = names[answer.node]
        line = silo_line(state.round + 1, name, cohort.weights[name], answer.bytes_down, answer.bytes_up)
        try:
            contribution = _admit(federation, name, cohort.weights[name], answer, started.payload, state.adapter)
            assert answer.content is not None, "or it would not have been admitted"
            # the envelope has checked names and types
            line["train"] = train = cast(TrainFigures, dict(answer.content.fields))
            lines[name] = line
            federation.tell("answered", silo=name, round=state.round + 1, **train, bytes_up=answer.bytes_up,
                            bytes_down=answer.bytes_down)  # fmt: skip
            yield contribution
            del contribution, answer  # while the next one is decoded
        except AdmissionError as error:
            reason = shown(str(error))
            lines[name] = line | {"status": "left out", "reason": reason}
            federation.tell("left_out", silo=name, round=state.round + 1, reason=reason)


def _with_adapter(federation: Federation, kind: Kind, round_: int, arrays: AdapterState) -> Envelope:
    """A request that brings an adapter, but for what silos draw themselves, and whatever is given beside it."""
    seeded = federation.method.seeded(federation.spec)
    sent = {name: value for name, value in arrays.items() if name not in seeded}
    vector, described = manifest.pack(sent, federation.codec)
    return Envelope("down", kind, {"job": federation.job, "round": round_}, vector, described)


def _admit(
    federation: Federation, name: str, weight: int, answer: Answer, expected: AdapterSpec, adapter: AdapterState
) -> Contribution:
    """Turn an answer into a contribution, if it holds the tensors that are expected.

    What the silo has come to must be an adapter that the others would take; then so is any mean of such adapters.

    Raises:
        AdmissionError: there is none, or it must not be used.
    """
    if answer.content is None:
        raise AdmissionError(answer.problem or "no answer")
    fields, profile = answer.content.fields, federation.profiles[name]
    if fields["examples"] != profile.train_rows:
        raise AdmissionError(f"it says it holds {fields['examples']} rows, and {profile.train_rows} when it joined")
    if not fields["steps"] or not fields["loss_tokens"]:
        raise AdmissionError("it trained on nothing")
    if int(fields["loss_tokens"]) > int(fields["tokens"]):
        raise AdmissionError("it trained on more response tokens than tokens")
    assert answer.content.vector is not None and answer.content.manifest is not None
    update = manifest.unpack(answer.content.vector, answer.content.manifest, expected, federation.codec)
    moved = (adapter[tensor] + change for tensor, change in update.items() if tensor in adapter)
    if any(float(np.abs(value).max()) > manifest.MAX_MAGNITUDE for value in moved):
        raise AdmissionError(f"its adapter holds a number beyond {manifest.MAX_MAGNITUDE:g}")
    return Contribution(name, update, weight)


# ------------------------------------------------------------------------------------ after the round


def _finish_round(
    federation: Federation,
    state: ServerState,
    aggregate: Aggregate | None,
    lines: dict[str, SiloLine],
    began: float,
) -> None:
    """Evaluate where it is due, write the metrics, save the state."""
    if federation.scored and _evaluation_due(federation.recipe, state.round):
        _evaluate(federation, state, lines)
    _write_lines(federation, lines)
    summary = round_line(state.round, aggregate, lines, time.monotonic() - began)
    federation.run.add_metrics(summary)
    checkpoint.save(federation.run, Saved(state, federation.profiles, checkpoint.metrics_bytes(federation.run)))
    federation.tell("round", **summary)


def _write_lines(federation: Federation, lines: Mapping[str, SiloLine]) -> None:
    for name in sorted(lines):
        federation.run.add_metrics(lines[name])


def _evaluation_due(recipe: Recipe, round_: int) -> bool:
    every = recipe.evaluation.every
    return round_ in (0, recipe.training.rounds) or (every > 0 and round_ % every == 0)


def _evaluate(federation: Federation, state: ServerState, lines: dict[str, SiloLine]) -> None:
    """Have every silo that is here score the adapter on its held-out rows."""
    request = _with_adapter(federation, "evaluate", state.round, state.adapter)
    names = dict(sorted(federation.members.items(), key=lambda item: -federation.profiles[item[1]].test_loss_tokens))
    requests = {node: request for node in names if federation.profiles[names[node]].test_loss_tokens}
    for answer in exchange(
        federation.transport, requests, names, state.round, federation.recipe.federation.round_timeout
    ):
        name = names[answer.node]
        line = lines.get(name) or silo_line(state.round, name, None)
        line["bytes_down"] += answer.bytes_down
        line["bytes_up"] += answer.bytes_up
        try:
            line["evaluation"] = _score(federation, name, answer)
        except AdmissionError as error:
            reason = shown(f"evaluation: {error}")
            line["reason"] = line["reason"] or reason
            federation.tell("left_out", silo=name, round=state.round, reason=reason)
        lines[name] = line


def _score(federation: Federation, name: str, answer: Answer) -> Evaluation:
    if answer.content is None:
        raise AdmissionError(answer.problem or "no answer")
    fields, profile = answer.content.fields, federation.profiles[name]
    rows, tokens, correct = int(fields["rows"]), int(fields["tokens"]), int(fields["correct"])
    if (rows, tokens) != (profile.test_rows, profile.test_loss_tokens):
        raise AdmissionError("it scored other rows than it announced when it joined")
    if correct > tokens:
        raise AdmissionError(f"it says that {correct} of {tokens} tokens were right")
    return figures(float(fields["loss"]), tokens, correct) | {"rows": rows}
