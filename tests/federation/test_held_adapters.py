"""An adapter that a silo has scored is not sent to it again: same bits, half the bytes, and no way to be stuck."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from tests.federation.helpers import adapter_bytes, client_app, run

import silotune
from silotune.errors import InputError
from silotune.model.adapter import initial_adapter
from silotune.silo import answer, start
from silotune.silo import held as room
from silotune.silo.held import held, hold
from silotune.wire import codecs, manifest
from silotune.wire.envelope import NOT_HELD


def broadcasts(folder, kind="train"):
    return [entry for entry in folder.ledger() if entry["kind"] == kind and entry["direction"] == "down"]


def forgetful(monkeypatch, when=lambda silo, digest: True):
    """Silos that have lost what they said they keep."""
    honest, asked = start.held, []

    def lost(root, identity, digest):
        asked.append(digest)
        return None if when(len(asked), digest) else honest(root, identity, digest)

    monkeypatch.setattr(start, "held", lost)


@pytest.mark.parametrize(
    ("algorithm", "codec"),
    [("fedavg", "float32"), ("ffa", "bfloat16"), ("alternating", "int8"), ("scaffold", "int8")],
)
def test_the_bits_are_those_of_sending_it_twice(make_recipe, tmp_path, monkeypatch, algorithm, codec):
    recipe = make_recipe(training={"rounds": 3}, federation={"algorithm": algorithm}, wire={"codec": codec})
    kept, _ = run(recipe, tmp_path / "kept")
    assert all(entry["fields"]["held"] for entry in broadcasts(kept))
    monkeypatch.setattr(answer, "hold", lambda *_: False)
    sent, _ = run(recipe, tmp_path / "sent")
    assert not any(entry["fields"]["held"] for entry in broadcasts(sent))
    assert adapter_bytes(kept) == adapter_bytes(sent)


def test_an_adapter_goes_to_a_silo_once_a_round(make_recipe, tmp_path):
    folder, _ = run(make_recipe(training={"rounds": 3}), tmp_path / "run")
    assert all(not entry["tensors"] for entry in broadcasts(folder))
    assert {entry["round"] for entry in broadcasts(folder, "evaluate")} == {0, 1, 2, 3}
    small, large = (max(entry["bytes"] for entry in broadcasts(folder, kind)) for kind in ("train", "evaluate"))
    size = sum(int(np.prod(shape)) for _, shape in broadcasts(folder, "evaluate")[0]["tensors"])
    assert large - small > 4 * size


def test_rounds_that_are_not_scored_are_sent_whole(make_recipe, tmp_path):
    folder, _ = run(make_recipe(training={"rounds": 3}, evaluation={"every": 0}), tmp_path / "run")
    assert [bool(entry["fields"]["held"]) for entry in broadcasts(folder)] == [True] * 3 + [False] * 6


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_a_silo_that_has_lost_it_is_sent_it_in_the_same_round(make_recipe, tmp_path, monkeypatch, algorithm):
    recipe = make_recipe(training={"rounds": 2}, federation={"algorithm": algorithm})
    whole, _ = run(recipe, tmp_path / "whole")
    forgetful(monkeypatch, when=lambda count, _: count == 1)
    folder, events = run(recipe, tmp_path / "lost")
    assert adapter_bytes(folder) == adapter_bytes(whole)
    assert not [event for event in events if event.kind == "left_out"]
    first = [entry for entry in broadcasts(folder) if entry["round"] == 1]
    assert len(first) == 4 and [bool(entry["fields"]["held"]) for entry in first] == [True, True, True, False]
    told = [line for line in folder.metrics() if line["silo"] == first[-1]["silo"] and line["round"] == 1]
    down = [entry["bytes"] for entry in folder.ledger()
            if entry["direction"] == "down" and entry["silo"] == first[-1]["silo"] and entry["round"] == 1]  # fmt: skip
    assert told[0]["bytes_down"] == sum(down)


def test_a_silo_that_never_finds_it_is_asked_twice_and_no_more(make_recipe, tmp_path):
    """It says that it keeps the adapter, and then that it does not, whatever it is sent."""
    recipe = make_recipe(training={"rounds": 2}, federation={"minimum": 2})

    def change(request, reply, silo):
        from flwr.app import Message

        from silotune.federation.messages import content
        from silotune.wire.envelope import failure

        if silo == "ash" and request.metadata.message_type == "train":
            return Message(content(failure("train", NOT_HELD)), reply_to=request)
        return None

    folder, events = run(recipe, tmp_path / "run", client_app(change))
    assert [event.fields["reason"] for event in events if event.kind == "left_out"] == [NOT_HELD] * 2
    assert [entry["round"] for entry in broadcasts(folder) if entry["silo"] == "ash"] == [1, 1, 2, 2]


def test_a_resumed_run_sends_it_again(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 3})
    whole, _ = run(recipe, tmp_path / "whole")
    with pytest.raises(silotune.Interrupted):
        run(recipe, tmp_path / "run", stop_after="answered")
    folder, _ = run(recipe, tmp_path / "run")
    assert adapter_bytes(folder) == adapter_bytes(whole)


# ------------------------------------------------------------------------------------------- on the disk


@pytest.fixture
def packed(make_recipe):
    from silotune.federation.result import adapter_spec

    return manifest.pack(initial_adapter(adapter_spec(make_recipe()), 1), codecs.find("int8"))


def test_what_is_held_comes_back_as_it_was(tmp_path, packed):
    array, described = packed
    assert hold(tmp_path / "m", "ab" * 8, array, described)
    found, said = held(tmp_path / "m", "ab" * 8, described.sha256)
    assert said == described and found.dtype == array.dtype and found.tobytes() == array.tobytes()


def test_one_adapter_is_held_whatever_run_it_is_of(tmp_path, packed):
    array, described = packed
    hold(tmp_path / "m", "ab" * 8, array, described)
    other = replace(described, sha256=hashlib.sha256(b"other").hexdigest())
    hold(tmp_path / "m", "cd" * 8, array, other)
    assert held(tmp_path / "m", "ab" * 8, described.sha256) is None
    assert len(list(tmp_path.rglob("adapter-*"))) == 1


@pytest.mark.parametrize("harm", ["gone", "cut", "empty", "other"])
def test_what_is_not_whole_is_not_held(tmp_path, packed, harm):
    array, described = packed
    hold(tmp_path / "m", "ab" * 8, array, described)
    (path,) = tmp_path.rglob("adapter-*")
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": path.read_bytes()[:-9], "empty": b"", "other": b"\xff" * 4000}[harm])
    assert held(tmp_path / "m", "ab" * 8, described.sha256) is None


@pytest.mark.parametrize("digest", ["", "../../x", "0" * 63, "0" * 65, "A" * 64])
def test_a_digest_is_no_path(tmp_path, digest, packed):
    hold(tmp_path / "m", "ab" * 8, *packed)
    assert held(tmp_path / "m", "ab" * 8, digest) is None


def test_where_it_cannot_be_kept_the_score_still_counts(make_recipe, tmp_path, monkeypatch):
    def full(*_):
        raise InputError("this silo's memory cannot be written (No space left on device)")

    monkeypatch.setattr(room, "writing", full)
    folder, events = run(make_recipe(), tmp_path / "run")
    assert not [event for event in events if event.kind == "left_out"]
    assert not any(entry["fields"]["held"] for entry in broadcasts(folder))
