"""A cohort's updates: what each silo is sent, and which answers may be used."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from silotune.aggregation.interface import Aggregate, Contribution, Round
from silotune.algorithms.interface import Arrays, ServerState
from silotune.errors import AdmissionError
from silotune.federation.cohort import bounded, weight_of
from silotune.federation.exchange import Answer, exchange
from silotune.federation.federation import Federation
from silotune.federation.metrics import SiloLine, TrainFigures, silo_line
from silotune.model.adapter import AdapterSpec, AdapterState
from silotune.wire import manifest
from silotune.wire.envelope import NOT_HELD, Envelope, Kind, Scalar, shown
from silotune.wire.manifest import MOST_UPDATE

NO_FIELDS: Mapping[str, Scalar] = {}


def contributions(
    federation: Federation, state: ServerState, started: Round, lines: dict[str, SiloLine]
) -> Iterator[Contribution]:
    """Ask the cohort, heaviest silo first; yield what may be used and note for every silo how it went."""
    cohort = started.cohort
    nodes = {name: node for node, name in federation.members.items()}
    ordered = sorted(cohort.weights, key=lambda name: (-federation.profiles[name].train_tokens, name))
    names = {nodes[name]: name for name in ordered}
    for name in ordered:
        federation.tell("asked", silo=name, round=state.round + 1)
    for answer in _answers(federation, state, names):
        name = names[answer.node]
        line = silo_line(state.round + 1, name, cohort.weights[name], answer.bytes_down, answer.bytes_up)
        try:
            contribution = _admit(federation, name, cohort.weights[name], answer, started.payload, state.adapter)
            assert answer.content is not None, "or it would not have been admitted"
            # The envelope has checked names and types.
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


def _answers(federation: Federation, state: ServerState, names: Mapping[int, str]) -> Iterator[Answer]:
    """Ask for a round's updates. A silo that keeps the adapter, as it scored it, is sent its digest in its place.

    One that has lost it after all is asked once more, and sent it, in what is left of the round's time.
    """
    seconds, began = federation.recipe.federation.round_timeout, time.monotonic()
    again: dict[int, Answer] = {}
    for answer in exchange(federation.transport, _requests(federation, state, list(names)), names, state.round + 1,
                           seconds, federation.recipe.federation.minimum):  # fmt: skip
        if answer.problem == NOT_HELD and answer.node in federation.holders:
            again[answer.node] = answer
            continue
        yield answer
        del answer  # while the next one is taken
    for node in again:
        federation.holders.pop(node, None)
    left = seconds if federation.transport.in_turn else seconds - (time.monotonic() - began)
    if left <= 0:
        yield from again.values()
    elif again:
        for answer in exchange(federation.transport, _requests(federation, state, list(again)), names, state.round + 1,
                               left):  # fmt: skip
            first = again[answer.node]
            yield replace(answer, bytes_down=answer.bytes_down + first.bytes_down,
                          bytes_up=answer.bytes_up + first.bytes_up)  # fmt: skip
            del answer


def _requests(federation: Federation, state: ServerState, nodes: Sequence[int]) -> dict[int, Envelope]:
    """What each node is asked to train from; nodes that are asked the same share one object, which is sent as one."""
    digest = with_adapter(federation, "evaluate", state.round, state.adapter).digest if federation.holders else ""
    beside = controls(federation, state)
    asked = {
        node: (
            digest if digest and federation.holders.get(node) == digest else "",
            federation.counted.get(federation.members[node], 0),
        )
        for node in nodes
    }
    brought = {
        held: with_adapter(federation, "train", state.round + 1, beside if held else {**state.adapter, **beside},
                           {"held": held, "counted": 0})
        for held in {held for held, _ in asked.values()}
    }  # fmt: skip
    requests = {
        (held, counted): replace(brought[held], fields={**brought[held].fields, "counted": counted})
        for held, counted in sorted(set(asked.values()))
    }
    return {node: requests[wanted] for node, wanted in asked.items()}


def with_adapter(
    federation: Federation, kind: Kind, round_: int, arrays: AdapterState, more: Mapping[str, Scalar] = NO_FIELDS
) -> Envelope:
    """A request that brings an adapter, but for what silos draw themselves, and whatever is given beside it.

    Args:
        federation: that is running.
        kind: of the request.
        round_: that it belongs to.
        arrays: to be sent; may be none, where a field names what the silo keeps.
        more: fields that a request of this kind has besides.
    """
    seeded = federation.method.seeded(federation.spec)
    sent = {name: value for name, value in arrays.items() if name not in seeded}
    vector, described = manifest.pack(sent, federation.codec) if sent else (None, None)
    return Envelope("down", kind, {"job": federation.job, "round": round_, **more}, vector, described)


def controls(federation: Federation, state: ServerState, aggregate: Aggregate | None = None) -> Arrays:
    """The method's control variates, 0 until a round has changed them; with an aggregate, those after its round."""
    control, beside = federation.method.control, federation.method.beside(federation.spec)
    before = {name: state.slots.get(name, np.zeros(shape, np.float32)) for name, shape in beside.shapes}
    if aggregate is None or control is None:
        return before
    settings = federation.recipe.federation
    declared = {name: weight_of(federation.profiles[name], settings) for name in federation.members.values()}
    weights = bounded(declared, settings.max_share)
    share = np.float32(sum(weights[name] for name in aggregate.silos) / sum(weights.values()))
    after = {name: value + share * aggregate.update[name] for name, value in before.items()}
    return {name: np.clip(value, -control.most, control.most) for name, value in after.items()}


def _admit(
    federation: Federation, name: str, weight: int, answer: Answer, expected: AdapterSpec, adapter: AdapterState
) -> Contribution:
    """Turn an answer into a contribution, if it holds the tensors that are expected.

    Its numbers keep to what an update may say, so that no silo can bring the others where the wire's bound is.

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
    control = federation.method.control
    for tensor, change in update.items():
        most = 2 * control.most if control and tensor not in adapter else MOST_UPDATE
        if float(np.abs(change).max()) > most:
            raise AdmissionError(f"its update holds a number beyond {most:g}")
    return Contribution(name, update, weight)
