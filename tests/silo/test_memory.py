"""A silo's memory: of the last round before, whole or not at all, and of one run only."""

import json
import stat

import numpy as np
import pytest

from silotune.errors import InputError
from silotune.silo.memory import KEEP, MARK, Memory, forget, own_split


def memory(tmp_path, run="0" * 16, silo="north/ward ä"):
    return Memory(tmp_path / "memory", run, silo)


def of(number):
    return {"x": np.full(3, number, np.float32)}


def test_each_round_finds_what_the_last_one_before_it_left(tmp_path):
    held = memory(tmp_path)
    assert held.before(1) == {} and not (tmp_path / "memory").exists()
    held.keep(1, of(1))
    held.keep(3, of(3))
    assert [int(held.before(round_)["x"][0]) if held.before(round_) else 0 for round_ in (1, 2, 3, 4, 9)] == [
        0,
        1,
        1,
        3,
        3,
    ]


def test_a_round_that_is_done_again_drops_what_came_of_it_and_later(tmp_path):
    held = memory(tmp_path)
    for number in (1, 2, 3):
        held.keep(number, of(number))
    held.keep(2, of(20))
    assert held.before(2)["x"][0] == 1 and held.before(3)["x"][0] == held.before(9)["x"][0] == 20


def test_the_last_rounds_stay_and_what_is_gone_is_said(tmp_path):
    held = memory(tmp_path)
    for number in range(1, 8):
        held.keep(number, of(number))
    assert len(list(held.folder.iterdir())) == KEEP
    assert held.before(7)["x"][0] == 6
    with pytest.raises(InputError, match="no longer remembers what it held before round 3: start a new run"):
        held.before(3)


def test_a_silo_that_came_late_began_from_nothing(tmp_path):
    held = memory(tmp_path)
    held.keep(4, of(4))
    assert held.before(2) == held.before(4) == {}
    held.keep(2, of(2))
    assert held.before(4)["x"][0] == 2


def test_runs_and_silos_do_not_meet(tmp_path):
    memory(tmp_path).keep(1, of(1))
    assert memory(tmp_path, run="1" * 16).before(2) == memory(tmp_path, silo="south").before(2) == {}


def test_what_cannot_be_read_or_written_is_told(tmp_path):
    held = memory(tmp_path)
    held.keep(1, of(1))
    (file,) = held.folder.iterdir()
    file.write_bytes(b"junk")
    with pytest.raises(InputError, match="memory of round 1 cannot be read"):
        held.before(2)
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
    with pytest.raises(InputError, match="does not remember that it joined this run: restart its SuperNode"):
        held.require("a job")
    held.join("a job")
    held.join("a job")
    held.require("a job")
    for ask in (held.join, held.require):
        with pytest.raises(InputError, match="another job than the one with which this silo joined this run"):
            ask("another")
    memory(tmp_path, run="1" * 16).join("another")


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
    with pytest.raises(InputError, match=f"not the folder of a silo's memory .it does not hold {MARK}"):
        forget(tmp_path)
    held = memory(tmp_path)
    held.keep(1, of(1))
    (held.root / "mine.txt").write_text("")
    with pytest.raises(InputError, match="cannot be deleted"):
        forget(held.root)
    assert (held.root / "mine.txt").exists()
