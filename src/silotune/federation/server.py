"""The round loop: ask a cohort, take updates as they arrive, admit or leave out, aggregate, apply, evaluate, save.

All mathematics is the method's, the aggregation's and the server optimizer's; all transport is behind Flower's `Grid`.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from flwr.serverapp import Grid

from silotune import algorithms
from silotune.aggregation.collectors import collector_of
from silotune.aggregation.interface import Aggregate, Ask, Cohort, Contribution, Round, collect
from silotune.algorithms.interface import ServerState
from silotune.algorithms.server_optimizers import optimizer_of
from silotune.data.seeds import derive
from silotune.errors import DivergedError, FederationError
from silotune.federation import checkpoint, scoring
from silotune.federation.checkpoint import Saved
from silotune.federation.cohort import bounded, choose_cohort, weight_of
from silotune.federation.events import RunContext
from silotune.federation.exchange import Transport, enter_late, require_going
from silotune.federation.federation import Federation
from silotune.federation.inline import InlineGrid
from silotune.federation.members import assemble
from silotune.federation.metrics import SiloLine, round_line
from silotune.federation.result import required_base
from silotune.federation.run import RunFolder
from silotune.federation.updates import contributions, controls
from silotune.model.adapter import AdapterSpec
from silotune.model.base import public_name
from silotune.settings import Job, Recipe
from silotune.wire import codecs, manifest
from silotune.wire.codecs.interface import Codec

LOOK = 1.0
"""Seconds between two looks for whether a federation is still paused."""


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
        resumed=saved is not None, profiles=profiles, counted=dict(saved.counted) if saved else {},
        base=required_base(recipe, next((profile.fingerprint for profile in profiles.values()), None)),
    )  # fmt: skip
    try:
        yield federation
    finally:
        transport.late.update(federation.joining)
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
        wait_while_paused(federation)
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
        minimum=recipe.federation.minimum,
        max_share=recipe.federation.max_share,
    )


def wait_while_paused(federation: Federation) -> None:
    """Begin no round while whoever runs the federation has paused it.

    Raises:
        Interrupted: the user asked to stop.
    """
    if federation.run_context.paused():
        federation.tell("remark", text="paused: no round begins until `silotune consortium resume`")
    while federation.run_context.paused():
        require_going(federation.transport)
        time.sleep(LOOK)


# ------------------------------------------------------------------------------------------- one round


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
    declared = {name: weight_of(federation.profiles[name], settings) for name in names}
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
        return contributions(federation, state, started, lines)

    aggregate = collect(collector_of(settings), started, ask)
    arrived = len(aggregate.silos) if aggregate else 0
    if aggregate is None or arrived < settings.minimum:
        _write_lines(federation, lines)
        raise _too_few(federation, lines, f"{arrived} of {len(names)}", round_)
    update = {name: aggregate.update[name] for name in trainable}
    after = optimizer_of(settings).apply(unrounded(state), update)
    after = replace(after, slots={**after.slots, **controls(federation, state, aggregate)})
    if not all(np.isfinite(value).all() for value in after.adapter.values()):
        raise DivergedError(
            f"round {round_}: the new adapter is not finite; {checkpoint.reached(federation.run)}. Lower "
            "training.learning_rate and federation.server_rate, and start a new run."
        )
    after, beyond = within_bounds(after)
    if beyond:
        federation.tell("remark", text=f"round {round_}: {beyond} numbers of the adapter would be beyond "
                                       f"{manifest.MOST_ADAPTER:g} and are brought back to it: lower training."
                                       "learning_rate and federation.server_rate, or look for a silo that does "
                                       "not train")  # fmt: skip
    after = sendable(after, federation.method.sent(federation.spec), federation.codec)
    _finish_round(federation, after, aggregate, lines, began)
    return after


def _too_few(federation: Federation, lines: Mapping[str, SiloLine], arrived: str, round_: int) -> FederationError:
    """Why a round does not count, and what to do."""
    reasons = {name: line["reason"] for name, line in sorted(lines.items()) if line["reason"]}
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    if reasons and all(_diverged(reason) for reason in reasons.values()):
        return DivergedError(
            f"round {round_}: no update has finite numbers ({why}); {checkpoint.reached(federation.run)}. Lower "
            "training.learning_rate and start a new run: with the same settings the same would happen again."
        )
    return FederationError(
        f"round {round_}: {arrived} updates could be used, federation.minimum asks for "
        f"{federation.recipe.federation.minimum} ({why}); {checkpoint.reached(federation.run)}."
    )


def within_bounds(state: ServerState) -> tuple[ServerState, int]:
    """(a state whose adapter every silo takes, how many of its numbers were brought back to the bound).

    No silo can then end a run by bringing the adapter where the others' updates are refused.
    """
    most = manifest.MOST_ADAPTER
    beyond = {name: int((np.abs(value) > most).sum()) for name, value in state.adapter.items()}
    kept = {name: np.clip(value, -most, most) if beyond[name] else value for name, value in state.adapter.items()}
    return replace(state, adapter=kept), sum(beyond.values())


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


# ------------------------------------------------------------------------------------ after the round


def _finish_round(
    federation: Federation,
    state: ServerState,
    aggregate: Aggregate | None,
    lines: dict[str, SiloLine],
    began: float,
) -> None:
    """Evaluate where it is due, write the metrics, save the state."""
    if federation.scored and scoring.due(federation.recipe, state.round):
        scoring.evaluate(federation, state, lines)
    _write_lines(federation, lines)
    federation.counted |= dict.fromkeys(aggregate.silos if aggregate else (), state.round)
    summary = round_line(state.round, aggregate, lines, time.monotonic() - began,
                         federation.recipe.federation.max_share)  # fmt: skip
    federation.run.add_metrics(summary)
    checkpoint.save(federation.run, Saved(state, federation.profiles, checkpoint.metrics_bytes(federation.run),
                                           federation.counted))  # fmt: skip
    federation.tell("round", **summary)


def _write_lines(federation: Federation, lines: Mapping[str, SiloLine]) -> None:
    for name in sorted(lines):
        federation.run.add_metrics(lines[name])
