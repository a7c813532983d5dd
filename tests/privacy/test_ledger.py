"""The ledger: a line a message, with what it was when serialised."""

import json
import os

import pytest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from tests.federation.helpers import client_app, run

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


def test_a_line_that_was_not_written_whole_is_an_error(tmp_path, monkeypatch):
    """Else an answer would leave that stands in no ledger."""
    write = os.write
    monkeypatch.setattr(ledger.os, "write", lambda number, data: write(number, data[:3]))
    with pytest.raises(OSError, match="No space left"):
        ledger.append_line(tmp_path / "ledger.jsonl", "{}{}{}")
