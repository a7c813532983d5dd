"""A silo that registers an answer and sends its parts slowly, never, or without end holds nobody up beyond a round."""

import time
from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from silotune.federation import exchange, run
from silotune.federation.events import RunContext
from silotune.federation.messages import content
from silotune.wire.envelope import Envelope, failure


class SuperLink:
    """What Flower's server gives of the answers to messages: of some, parts that are not there yet."""

    def __init__(self, missing):
        self.missing = missing
        self.answers, self.parts, self.owner = {}, {}, {}

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
            return PullObjectResponse(object_found=True, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=self.parts[name])

    def ConfirmMessageReceived(self, request):
        pass


class Answered(HttpGrid):
    """Flower's own grid, with answers to whatever is sent."""

    def __init__(self, superlink):
        super().__init__(token="t")
        self._run, self._client = SimpleNamespace(run_id=1), superlink

    def push_messages(self, messages):
        return [str(message.metadata.dst_node_id) for message in messages]


@pytest.fixture
def superlink(monkeypatch):
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
    return SuperLink(set())


def answers(superlink, recipe, folder, most_bytes=100, seconds=1.0):
    transport = exchange.Transport(Answered(superlink), run.create(recipe, folder), RunContext(3, False), most_bytes)
    requests = {node: Envelope("down", "join", {"job": "{}"}) for node in (7, 8)}
    began = time.monotonic()
    found = {answer.node: answer.problem for answer in exchange.exchange(transport, requests, {}, 0, seconds)}
    return found, time.monotonic() - began


def test_parts_that_never_come_are_waited_for_until_the_deadline_and_others_are_heard(superlink, make_recipe, tmp_path):
    superlink.missing.add("7")
    for node in ("7", "8"):
        superlink.add(node, content(failure("join", f"I am {node}")))
    found, took = answers(superlink, make_recipe(), tmp_path / "run")
    assert "did not come whole" in found[7] and found[8] == "I am 8"
    assert took < 60  # Flower alone waits 7200 s


def test_an_answer_that_is_too_large_is_not_taken_whole(superlink, make_recipe, tmp_path):
    large = Array("float32", (1 << 19,), "numpy.ndarray", bytes(1 << 21))
    superlink.add("7", RecordDict({"x": ArrayRecord({"x": large})}))
    superlink.add("8", content(failure("join", "I am 8")))
    found, _ = answers(superlink, make_recipe(), tmp_path / "run")
    assert "too large" in found[7] and found[8] == "I am 8"
    superlink.add("7", RecordDict({"x": ArrayRecord({"x": large})}))
    superlink.add("8", content(failure("join", "I am 8")))
    found, _ = answers(superlink, make_recipe(), tmp_path / "other", most_bytes=4 << 20)
    assert "schema" in found[7] and found[8] == "I am 8"
