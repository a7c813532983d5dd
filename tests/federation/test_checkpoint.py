"""Checkpoints: whole or absent, the last few kept, and what cannot be read is told."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from silotune.algorithms.interface import ServerState
from silotune.errors import RunError
from silotune.federation import checkpoint, run
from silotune.federation.checkpoint import Saved
from silotune.privacy.ledger import append_line
from silotune.settings import Recipe
from silotune.wire.profile import Profile

PROFILE = Profile("s", "f", 1, 2, 3, 4, 0, 5, 6, 0, 7, 1, "simulation", "0", "", "")


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
    assert (again.state.adapter["a.lora_A.weight"] == 11).all() and (again.state.slots["momentum"] == 1).all()
    assert sorted(path.name for path in folder.states.iterdir()) == ["round-0010", "round-0011"]


def test_a_save_that_was_cut_short_leaves_the_one_before(folder, monkeypatch):
    checkpoint.save(folder, saved(1))

    def die(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "sync", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, saved(2))
    assert checkpoint.latest(folder).state.round == 1
    checkpoint.rewind(folder, None)
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


def test_metrics_that_have_lost_lines_are_refused_and_stay_as_they_are(folder):
    folder.add_metrics({"round": 0})
    before = folder.metrics_file.read_bytes()
    with pytest.raises(
        RunError, match=r"metrics\.jsonl: has 13 bytes, and 99 when round 1 was saved: .* start a new run"
    ):
        checkpoint.rewind(folder, Saved(saved(1).state, {}, 99))
    assert folder.metrics_file.read_bytes() == before
    folder.metrics_file.unlink()
    with pytest.raises(RunError, match="has 0 bytes"):
        checkpoint.rewind(folder, Saved(saved(1).state, {}, 99))


def test_metrics_are_on_the_disk_before_the_state_that_counts_them(folder, monkeypatch):
    synced = []
    monkeypatch.setattr(checkpoint, "sync", lambda path: synced.append((path, (folder.states / "round-0001").exists())))
    folder.add_metrics({"round": 1})
    checkpoint.save(folder, saved(1))
    assert synced[0] == (folder.metrics_file, False) and synced[-1] == (folder.states, True)


def test_torn_lines_are_passed_over_and_do_not_swallow_the_next(folder):
    for file, read in ((folder.metrics_file, folder.metrics), (folder.ledger_file, lambda: list(folder.ledger()))):
        append_line(file, '{"round": 1}')
        with file.open("ab") as stream:
            stream.write('{"round": 2, "silo": "ü'.encode()[:-1])
        assert read() == [{"round": 1}]
        append_line(file, '{"round": 3}')
        assert read() == [{"round": 1}, {"round": 3}]


def test_folders_of_other_names_among_the_states_are_nobodys_business(folder):
    checkpoint.save(folder, saved(1))
    for name in ("round-0002 (copy)", "round-x", "notes"):
        (folder.states / name).mkdir()
    (folder.states / "round-0009").touch()
    assert checkpoint.latest(folder).state.round == 1
    assert checkpoint.reached(folder) == "round 1 is saved"
    for round_ in (2, 3):
        checkpoint.save(folder, saved(round_))
    assert checkpoint.latest(folder).state.round == 3 and (folder.states / "round-0002 (copy)").exists()


def test_a_kill_while_a_folder_is_being_made_leaves_one_that_can_be_used(tmp_path, monkeypatch):
    """Killed before each step in turn: the folder is free for `--out`, or a run to go on with."""
    outcomes = set()
    for step in range(20):
        path, left = tmp_path / f"run{step}", [step]

        def counting(honest, left=left):
            def work(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return honest(*arguments, **options)

            return work

        with monkeypatch.context() as patched:
            for owner, name in ((Path, "mkdir"), (Path, "replace"), (os, "fsync"), (shutil, "rmtree")):
                patched.setattr(owner, name, counting(getattr(owner, name)))
            try:
                run.create(Recipe(), path)
            except KeyboardInterrupt:
                pass
            else:
                break
        if (path / "recipe.toml").exists():
            outcomes.add("resume")
            assert run.reopen(path, None).environment()["packages"]
        else:
            outcomes.add("out")
            run.create(Recipe(), path)
        assert sorted(entry.name for entry in path.iterdir()) == ["environment.json", "recipe.toml"]
    assert outcomes == {"resume", "out"}


def test_a_folder_with_somebody_elses_environment_is_not_free(tmp_path):
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(RunError, match="exists already"):
        run.create(Recipe(), tmp_path)


@pytest.mark.parametrize("read", [checkpoint.latest, checkpoint.known_silos])
def test_a_state_of_another_release_is_told_as_that(folder, read):
    checkpoint.save(folder, saved(1))
    path = folder.states / "round-0001" / "state.json"
    path.write_text(path.read_text().replace(f'"format": {checkpoint.FORMAT}', '"format": 2'))
    with pytest.raises(RunError, match=r"written in format 2, and this release reads format .* Go on with the release"):
        read(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\udcff"])
def test_an_environment_that_is_none_is_told(folder, text):
    folder.environment_file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=r"environment\.json: .*Put it back"):
        folder.identity()
