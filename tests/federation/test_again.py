"""A node that goes while it works is asked again when it is back, and counts once; one that is expelled is not waited for."""

from dataclasses import replace

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from tests.federation.helpers import Network, adapter_bytes, client_app, serve

from silotune.errors import FederationError
from silotune.federation import exchange, local, server
from silotune.federation.events import RunContext

TRAIN = "train"


class Losing(Network):
    """A grid on which the second node goes as it is asked to train in round 1, and comes back, or not, a little later."""

    def __init__(self, silos, back=True, expelled=False, silent=False):
        super().__init__(client_app(), silos)
        self.gone, self.back, self.expelled, self.silent, self.looks = False, back, expelled, silent, 0

    def activations(self):
        self.looks += 1
        if self.gone and self.expelled:
            return {1: "a", 3: "a"}
        if self.gone and not self.back:
            return {1: "a", 2: "", 3: "a"}
        return {1: "a", 2: "b" if self.gone else "a", 3: "a"}

    def pull_messages(self, message_ids):
        answers = []
        for identifier in message_ids:
            message = self.inner._pending.get(identifier)
            lost = message is not None and message.metadata.dst_node_id == 2 and message.metadata.message_type == TRAIN
            if lost and message.metadata.group_id == "1" and not (self.gone and self.back):
                self.gone = True
                if not self.silent:
                    del self.inner._pending[identifier]
                    error = Error(ErrorCode.NODE_UNAVAILABLE, "gone")
                    answers.append(Message(error, reply_to=message))
                continue
            answers += super().pull_messages([identifier])
        return answers


@pytest.fixture
def go(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "LOOK_FOR_NODES", 0.0)

    def run(out, grid=None, minimum=3, timeout=30.0, **options):
        recipe = make_recipe(federation={"minimum": minimum, "round_timeout": timeout})
        silos = local.prepare_silos(recipe).silos
        events = []
        made = Losing(silos, **options) if grid is None else grid(silos)
        activations = getattr(made, "activations", None)
        monkeypatch.setattr(
            "tests.federation.helpers.RunContext",
            lambda *given, **named: replace(RunContext(*given, **named), activations=activations),
        )
        return serve(made, recipe, tmp_path / out, 3, events.append), events

    return run


@pytest.mark.parametrize("silent", [False, True])
def test_one_that_is_back_is_asked_again_and_the_bits_are_the_same(go, silent):
    """Whether Flower says that the node went, or nothing ever comes."""
    plain, _ = go("plain", lambda silos: Network(client_app(), silos))
    lost, events = go("lost", silent=silent)
    assert adapter_bytes(lost) == adapter_bytes(plain)
    again = [event.fields for event in events if event.kind == "asked_again"]
    assert again == [{"silo": "birch", "round": 1}]
    counted = [line["silo"] for line in lost.metrics() if line["round"] == 1 and line["silo"] and line["train"]]
    assert sorted(counted) == ["ash", "birch", "cedar"]


def test_one_that_does_not_come_back_is_waited_for_a_while_where_enough_answer(go, monkeypatch):
    monkeypatch.setattr(exchange, "GRACE", 0.5)
    run, _ = go("run", minimum=2, back=False)
    (line,) = [line for line in run.metrics() if line["round"] == 1 and line["silo"] == "birch"]
    assert "not connected any more" in line["reason"]


def test_it_is_waited_for_until_the_deadline_where_its_answer_is_needed(go, monkeypatch):
    monkeypatch.setattr(exchange, "GRACE", 0.0)
    with pytest.raises(
        FederationError, match=r"2 of 3 updates could be used.*birch: the silo is not connected any more"
    ):
        go("run", timeout=3.0, back=False)


def test_one_that_was_expelled_is_not_waited_for(go):
    run, _ = go("run", minimum=2, timeout=3000.0, back=False, expelled=True)
    (line,) = [line for line in run.metrics() if line["round"] == 1 and line["silo"] == "birch"]
    assert "not connected any more" in line["reason"]


def test_a_federation_that_is_paused_begins_no_round(make_recipe, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(server, "LOOK", 0.0)
    waits = iter([True, True, False, False, False, False])
    context = RunContext(3, fixed=True, paused=lambda: next(waits))
    federation = type("F", (), {"run_context": context, "tell": lambda _, kind, **fields: told.append(fields["text"]),
                                "transport": type("T", (), {"run_context": context})()})()  # fmt: skip
    server.wait_while_paused(federation)
    server.wait_while_paused(federation)
    assert told == ["paused: no round begins until `silotune consortium resume`"]
