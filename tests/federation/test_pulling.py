"""A silo that registers an answer and sends its parts slowly, never, or without end holds nobody up beyond a round."""

import time
from dataclasses import replace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from silotune.federation import exchange, pulling, run
from silotune.federation.events import RunContext
from silotune.federation.messages import content
from silotune.federation.pulling import finish
from silotune.wire.envelope import Envelope, failure


class SuperLink:
    """What Flower's server gives of the answers to messages: of some, parts that are not there yet."""

    def __init__(self, missing):
        self.missing = missing
        self.answers, self.parts, self.owner = {}, {}, {}
        self.confirmed, self.lost_after, self.asked = set(), 1 << 30, 0

    def add(self, identifier, records):
        asked = Message(RecordDict(), 7, "query", ttl=1000.0)
        asked.metadata.__dict__["_message_id"] = identifier
        reply = Message(records, reply_to=asked)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.answers[identifier] = message_to_proto(reply), get_object_tree(reply)
        for name, part in get_all_nested_objects(reply).items():
            self.parts[name], self.owner[name] = part.deflate(), identifier

    def PullMessages(self, request):
        found = [self.answers.pop(name) for name in request.message_ids if name in self.answers]
        return PullAppMessagesResponse(
            messages_list=[proto for proto, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def PullObject(self, request):
        name = request.object_id
        if self.owner[name] in self.missing:
            self.asked += 1
            return PullObjectResponse(object_found=self.asked <= self.lost_after, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=self.parts[name])

    def ConfirmMessageReceived(self, request):
        self.confirmed.add(self.owner[request.message_object_id])


class Answered(HttpGrid):
    """Flower's own grid, with answers to whatever is sent."""

    def __init__(self, superlink):
        super().__init__(token="t")
        self._run, self._client = Run.create_empty(1), superlink

    def push_messages(self, messages):
        return [str(message.metadata.dst_node_id) for message in messages]


@pytest.fixture
def superlink(monkeypatch):
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
    return SuperLink(set())


@pytest.fixture
def transport(superlink, make_recipe, tmp_path):
    return exchange.Transport(
        Answered(superlink), run.create(make_recipe(), tmp_path / "run"), RunContext(3, False), 100
    )


def asked(transport, seconds=1.0):
    requests = {node: Envelope("down", "join", {"job": "{}"}) for node in (7, 8)}
    began = time.monotonic()
    found = {answer.node: answer.problem for answer in exchange.exchange(transport, requests, {}, 0, seconds)}
    return found, time.monotonic() - began


def both_say(superlink):
    for node in ("7", "8"):
        superlink.add(node, content(failure("join", f"I am {node}")))


def test_parts_that_never_come_are_waited_for_until_the_deadline_and_others_are_heard(superlink, transport):
    superlink.missing.add("7")
    both_say(superlink)
    found, took = asked(transport)
    assert found == {7: "no answer within 1 s", 8: "I am 8"}
    assert took < 60  # Flower alone waits 7200 s


def test_an_answer_whose_parts_come_while_others_are_heard_is_whole(superlink, transport, monkeypatch):
    superlink.missing.add("7")
    both_say(superlink)
    looks = []

    def look(grid, answer, most):
        looks.append(len(answer.known))
        if len(looks) == 3:
            superlink.missing.clear()
        return finish(grid, answer, most)

    monkeypatch.setattr(exchange, "finish", look)
    found, _ = asked(transport, 60.0)
    assert found == {7: "I am 7", 8: "I am 8"} and len(looks) == 3 and not transport.unfinished
    assert superlink.confirmed == {"7", "8"}


def test_one_that_is_whole_after_its_deadline_is_in_the_ledger_as_late(superlink, transport):
    superlink.missing.add("7")
    both_say(superlink)
    asked(transport)
    superlink.missing.clear()
    exchange.enter_late(transport)
    late = [entry for entry in transport.run.ledger() if entry["late"]]
    assert [entry["node"] for entry in late] == [7] and not transport.late


def test_one_that_will_not_come_whole_any_more_is_told(superlink, transport):
    superlink.missing.add("7")
    both_say(superlink)
    superlink.lost_after = 2
    found, _ = asked(transport, 60.0)
    assert found == {7: "the answer did not come whole", 8: "I am 8"}


def test_an_answer_that_is_too_large_is_not_taken_whole(superlink, transport):
    large = Array("float32", (1 << 19,), "numpy.ndarray", bytes(1 << 21))
    superlink.add("7", RecordDict({"x": ArrayRecord({"x": large})}))
    superlink.add("8", content(failure("join", "I am 8")))
    found, _ = asked(transport)
    assert "the answer has more than" in found[7] and found[8] == "I am 8"
    superlink.add("7", RecordDict({"x": ArrayRecord({"x": large})}))
    superlink.add("8", content(failure("join", "I am 8")))
    found, _ = asked(replace(transport, most_bytes=4 << 20))
    assert "schema" in found[7] and found[8] == "I am 8"


def test_nor_is_one_of_many_parts(superlink, transport):
    superlink.add("7", RecordDict({f"x{number}": ConfigRecord({"x": number}) for number in range(100)}))
    superlink.add("8", content(failure("join", "I am 8")))
    found, _ = asked(transport)
    assert "the answer has 102 parts" in found[7] and found[8] == "I am 8"


def test_parts_that_are_there_and_take_too_long_are_given_up(superlink, transport, monkeypatch):
    monkeypatch.setattr(pulling, "SLOWEST", 0.0)
    both_say(superlink)
    found, _ = asked(transport)
    assert all("takes more than 0 s" in problem for problem in found.values())
