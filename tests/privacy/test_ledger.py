"""The ledger: a line a message, with what it was when serialised."""

import json
import os

import pytest
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from tests.federation.helpers import client_app, run

from silotune.data.silos.sources import SiloConfig, find_silos
from silotune.privacy import ledger
from silotune.privacy.ledger import Entry, append


def test_lines_are_appended_whole(tmp_path):
    entry = Entry("up", "s\u2028x", "train", 3, (("a", (2, 3)),), "float32", {"loss": 0.5}, 123, "ff")
    for _ in range(3):
        append(tmp_path / "ledger.jsonl", entry)
    lines = (tmp_path / "ledger.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 4 and lines[3] == ""
    line = json.loads(lines[1])
    assert line["tensors"] == [["a", [2, 3]]] and line["silo"] == "s\u2028x" and line["bytes"] == 123


def test_every_message_is_in_it_with_its_tensors_and_weight(make_recipe, tmp_path):
    seen = []

    def note(request, reply, silo):
        seen.extend([("down", request), ("up", reply)])
        return

    folder, _ = run(make_recipe(training={"rounds": 1}), tmp_path / "run", client_app(note))
    ledger = list(folder.ledger())
    assert len(ledger) == len(seen) == 2 * 3 * 4  # join, base, train, evaluate; three silos; both ways
    weights = sorted(
        sum(len(part.deflate()) for part in get_all_nested_objects(message).values()) for _, message in seen
    )
    # Flower's message ids are set after a request is weighed, so a request may differ by the length of its id.
    assert all(abs(a - b) <= 64 for a, b in zip(weights, sorted(entry["bytes"] for entry in ledger), strict=True))
    digests = {message.content.object_id for _, message in seen}
    assert {entry["sha256"] for entry in ledger} == digests
    for entry in ledger:
        carries = (entry["kind"], entry["direction"]) in {("evaluate", "down"), ("train", "up")}  # to train, it is kept
        assert bool(entry["tensors"]) == carries and entry["dtype"] == ("float32" if carries else None)
        assert all(".lora_A." in name or ".lora_B." in name for name, _ in entry["tensors"])
        if carries:
            assert entry["bytes"] > 4 * sum(shape[0] * shape[1] for _, shape in entry["tensors"])


def test_a_silos_own_ledger_has_its_failures_too(make_recipe, silos, tmp_path):
    """Also those that come before it is known what the silo is, or what it was asked; what cannot be entered stays."""
    from silotune.federation.app import handle
    from silotune.federation.inline import InlineGrid
    from silotune.federation.messages import FIELDS, TYPES, content
    from silotune.federation.server import _job
    from silotune.wire.envelope import Envelope

    def ask(node_config, change=lambda records: None):
        context = InlineGrid(None, [SiloConfig(find_silos(make_recipe().data.silos)[0])])._contexts[1]
        context.node_config = node_config
        records = content(Envelope("down", "join", {"job": _job(make_recipe(), "0" * 16).model_dump_json()}))
        change(records)
        return handle(Message(records, 1, TYPES["join"], group_id="0"), context, "join").content[FIELDS]

    own = tmp_path / "own.jsonl"
    here = {"data": str(silos / "ash"), "ledger": str(own), "base": make_recipe().model.base, "threads": 1}
    said = [
        ask(here | {"data": str(silos / "none"), "silo": "north"}),
        ask(here | {"unknown": 1}),
        ask(here, lambda records: records.pop(FIELDS)),
        ask(here),
    ]
    lines = [json.loads(text) for text in own.read_text().splitlines()]
    assert [line["fields"] for line in lines] == [dict(fields) for fields in said]
    assert ["failure" in fields for fields in said] == [True, True, True, False]
    assert [line["silo"] for line in lines] == ["north", "this silo", "ash", "ash"]
    assert "unexpected IsADirectoryError" in ask(here | {"ledger": str(tmp_path)})["failure"]


def test_a_silo_keeps_a_ledger_of_its_own(make_recipe, tmp_path):
    from silotune.federation.app import handle
    from silotune.federation.inline import InlineGrid
    from silotune.federation.messages import TYPES, content
    from silotune.federation.server import _job
    from silotune.wire.envelope import Envelope

    recipe = make_recipe()
    files = find_silos(recipe.data.silos)[0]
    silo = SiloConfig(files, base=recipe.model.base, threads=1, ledger=tmp_path / "own.jsonl")
    grid = InlineGrid(None, [silo])
    request = Message(
        content(Envelope("down", "join", {"job": _job(recipe, "0" * 16).model_dump_json()})), 1, TYPES["join"]
    )
    reply = handle(request, grid._contexts[1], "join")
    (line,) = [json.loads(text) for text in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert (
        line["direction"] == "up" and line["silo"] == "ash" and line["fields"] == dict(reply.content["silotune.fields"])
    )


def test_a_line_that_was_not_written_whole_is_an_error(tmp_path, monkeypatch):
    """Else an answer would leave that stands in no ledger."""
    write = os.write
    monkeypatch.setattr(ledger.os, "write", lambda number, data: write(number, data[:3]))
    with pytest.raises(OSError, match="No space left"):
        ledger.append_line(tmp_path / "ledger.jsonl", "{}{}{}")
