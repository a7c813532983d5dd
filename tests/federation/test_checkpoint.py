"""Checkpoints: whole or absent, the last few kept, and what cannot be read is told."""

import numpy as np
import pytest

from silotune.algorithms.interface import ServerState
from silotune.errors import RunError
from silotune.federation import checkpoint, run
from silotune.federation.checkpoint import Profile, Saved
from silotune.settings import Recipe

PROFILE = Profile("s", "f", 1, 2, 3, 4, 0, 5, 6, 0, 7, 1, "0")


def saved(round_):
    adapter = {"a.lora_A.weight": np.full((2, 3), round_, np.float32)}
    return Saved(ServerState(round_, adapter, {"momentum": np.ones(3, np.float32)}), {"s": PROFILE}, 10 * round_)


@pytest.fixture
def folder(tmp_path):
    return run.create(Recipe(), tmp_path / "run")


def test_what_is_saved_comes_back(folder):
    assert checkpoint.latest(folder) is None
    for round_ in range(12):
        checkpoint.save(folder, saved(round_))
    again = checkpoint.latest(folder)
    assert again.state.round == 11 and again.profiles == {"s": PROFILE} and again.metrics_bytes == 110
    assert (again.state.adapter["a.lora_A.weight"] == 11).all() and (again.state.extra["momentum"] == 1).all()
    assert sorted(path.name for path in folder.states.iterdir()) == ["round-0010", "round-0011"]


def test_a_save_that_was_cut_short_leaves_the_one_before(folder, monkeypatch):
    checkpoint.save(folder, saved(1))

    def die(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_sync", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, saved(2))
    assert checkpoint.latest(folder).state.round == 1
    assert [path.name for path in folder.states.iterdir()] == ["round-0001"]


def test_a_damaged_state_is_told_with_what_to_do(folder):
    checkpoint.save(folder, saved(1))
    (folder.states / "round-0001" / "state.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="Remove this folder to go on from the round before"):
        checkpoint.latest(folder)


def test_metrics_after_the_saved_state_are_cut_and_the_ledger_is_not(folder):
    folder.add_metrics({"round": 1})
    length = checkpoint.metrics_bytes(folder)
    folder.add_metrics({"round": 2})
    folder.ledger_file.write_text("{}\n")
    checkpoint.rewind(folder, Saved(saved(1).state, {}, length))
    assert folder.metrics() == [{"round": 1}] and list(folder.ledger()) == [{}]
    checkpoint.rewind(folder, None)
    assert folder.metrics() == []


def test_a_folder_in_use_and_a_folder_with_something_in_it(folder, tmp_path):
    with pytest.raises(RunError, match="exists already"):
        run.create(Recipe(), folder.path)
    with run.held(folder), pytest.raises(RunError, match="another process"), run.held(folder):
        pass
    with pytest.raises(RunError, match="not a run folder"):
        run.reopen(tmp_path, None)
