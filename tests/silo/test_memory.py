"""A silo's memory: of the last round before, whole or not at all, and of one run only."""

import json
import os
import stat
import time

import numpy as np
import pytest

from silotune.errors import InputError
from silotune.silo.memory import ALWAYS, KEEP, MARK, OLD, Memory, forget, own_split


def memory(tmp_path, run="0" * 16, silo="north/ward ä"):
    return Memory(tmp_path / "memory", run, silo)


def of(number):
    return {"x": np.full(3, number, np.float32)}


def test_each_round_finds_what_the_last_one_that_counted_left(tmp_path):
    held = memory(tmp_path)
    assert held.begin(1, 0) == {} and not (tmp_path / "memory").exists()
    held.keep(1, of(1))
    assert held.begin(2, 1)["x"][0] == held.begin(3, 1)["x"][0] == 1
    held.keep(3, of(3))
    assert held.begin(4, 3)["x"][0] == held.begin(9, 3)["x"][0] == 3


def test_what_did_not_count_is_dropped(tmp_path):
    held = memory(tmp_path)
    for number in (1, 2, 3):
        held.keep(number, of(number))
    assert held.begin(9, 1)["x"][0] == 1
    with pytest.raises(InputError, match="no longer remembers what it held after round 3"):
        held.begin(9, 3)
    held.keep(2, of(20))
    assert held.begin(3, 2)["x"][0] == 20
    assert held.begin(4, 0) == {} and not list(held.folder.iterdir())


@pytest.mark.parametrize(("round_", "counted"), [(3, 3), (3, 4), (3, -1)])
def test_no_round_counts_before_it_is_done(tmp_path, round_, counted):
    with pytest.raises(InputError, match=f"round {counted} counted, and asks for round {round_}"):
        memory(tmp_path).begin(round_, counted)


def test_what_comes_too_late_takes_nothing_away(tmp_path):
    held = memory(tmp_path)
    for number in (1, 2, 4):
        held.keep(number, of(number))
    with pytest.raises(InputError, match="has gone on to round 4: what came of round 3 is too late"):
        held.keep(3, of(3))
    assert held.begin(5, 4)["x"][0] == 4


def test_the_last_rounds_stay_and_what_is_gone_is_said(tmp_path):
    held = memory(tmp_path)
    for number in range(1, 8):
        held.keep(number, of(number))
    assert len(list(held.folder.iterdir())) == KEEP
    assert held.begin(8, 7)["x"][0] == 7
    with pytest.raises(InputError, match="no longer remembers what it held after round 2: start a new run"):
        held.begin(3, 2)


def test_runs_and_silos_do_not_meet(tmp_path):
    memory(tmp_path).keep(1, of(1))
    assert memory(tmp_path, run="1" * 16).begin(2, 0) == memory(tmp_path, silo="south").begin(2, 0) == {}


def test_what_cannot_be_read_or_written_is_told(tmp_path):
    held = memory(tmp_path)
    held.keep(1, of(1))
    (file,) = held.folder.iterdir()
    file.write_bytes(b"junk")
    with pytest.raises(InputError, match="memory of round 1 cannot be read"):
        held.begin(2, 1)
    (tmp_path / "a file").write_text("")
    with pytest.raises(InputError, match="memory cannot be written"):
        Memory(tmp_path / "a file", "0" * 16, "a").keep(1, of(1))


def test_it_is_its_users_only_and_is_forgotten_whole(tmp_path):
    held = memory(tmp_path)
    held.keep(1, of(1))
    memory(tmp_path, run="1" * 16).keep(1, of(1))
    for folder in (held.root, held.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert forget(held.root) == 2 and not held.root.exists()


def test_a_silo_joins_a_run_with_one_job(tmp_path):
    held = memory(tmp_path)
    with pytest.raises(InputError, match="does not remember that it joined this run: start the silo again"):
        held.require("a job")
    held.join("a job")
    held.join("a job")
    held.require("a job")
    for ask in (held.join, held.require):
        with pytest.raises(InputError, match="another job than the one with which this silo joined this run"):
            ask("another")
    memory(tmp_path, run="1" * 16).join("another")


def test_runs_long_over_are_forgotten_when_another_is_joined(tmp_path):
    old, kept, *others, new, newer = (memory(tmp_path, run=f"{number:016x}") for number in range(ALWAYS + 3))
    for held in (old, kept, *others):
        held.join("{}")
        held.keep(1, of(1))
    past = time.time() - OLD - 9
    for path in (tmp_path / "memory").rglob("*"):
        os.utime(path, (past, past))
    kept.require("{}")  # it has a part in that one still
    new.join("{}")
    there = {held for held in (old, kept, *others, new) if held.folder.exists()}
    assert {kept, new} <= there and len(there) == ALWAYS + 1, "the latest stay, and what is joined comes on top"
    newer.join("{}")
    assert sum(held.folder.exists() for held in (old, *others)) == ALWAYS - 2
    assert kept.begin(2, 1)["x"][0] == 1 and (tmp_path / "memory" / MARK).is_file()


def test_what_a_silo_holds_out_is_drawn_once(tmp_path):
    root = tmp_path / "memory"
    seed, share = own_split(root, "north", 0.1)
    assert share == 0.1 and own_split(root, "north", 0.5) == (seed, 0.1)
    assert own_split(root, "south", 0.5)[0] != seed != own_split(tmp_path / "other", "north", 0.1)[0]
    (file,) = (path for path in root.glob("split-*.json") if json.loads(path.read_text())["seed"] == seed)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("{")
    with pytest.raises(InputError, match=r"cannot be read\. Delete it"):
        own_split(root, "north", 0.1)
    assert forget(root) == 0 and not root.exists()


def test_nothing_else_is_deleted(tmp_path):
    (tmp_path / "text.jsonl").write_text("{}")
    with pytest.raises(InputError, match=rf"not the folder of a silo's memory .it does not hold {MARK}"):
        forget(tmp_path)
    with pytest.raises(InputError, match=r"holds something else .text\.jsonl.: name an empty one"):
        Memory(tmp_path, "0" * 16, "north").keep(1, of(1))
    held = memory(tmp_path)
    held.keep(1, of(1))
    (held.root / "mine").mkdir()
    with pytest.raises(InputError, match=r"holds something else .mine.\. Move it away first"):
        forget(held.root)
    assert (held.root / "mine").exists() and len(held.begin(2, 1)["x"]) == 3


def test_what_a_kill_left_is_forgotten_too(tmp_path):
    held = memory(tmp_path)
    held.keep(1, of(1))
    for name in (".memory.json-0123456789ab", ".identity.pem-0123456789ab", f".split-{'0' * 16}.json-0123456789ab"):
        (held.root / name).write_text("{")
    held.keep(2, of(2))
    assert forget(held.root) == 1 and not held.root.exists()


@pytest.mark.parametrize(("asked", "held"), [(1e-6, 0.05), (0.2, 0.2), (0.99, 0.5)])
def test_no_job_makes_a_silo_hold_out_nearly_nothing_or_nearly_all(tmp_path, asked, held):
    assert own_split(tmp_path / "memory", "north", asked)[1] == held
