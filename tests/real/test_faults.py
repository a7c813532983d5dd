"""What breaks in a consortium: parts killed, stopped, cut off, in each phase. The run goes on by itself, or ends with
its state saved, exit code 3 and the one command to go on; no round counts twice, and the bits stay the same."""

import json
import os
import re
import shutil
import signal

import pytest
from tests.real import helpers
from tests.real.consortium import part_of

from silotune.recipe import dump_recipe

pytestmark = pytest.mark.real
TRAINING, UPLOADING = "train", "upload"
STEPS = 150
"""Steps of a round: some seconds, in which something can be broken."""


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    def go(**federation):
        recipe = make_recipe(
            data={"silos": ["silos/ash", "silos/birch"]}, training={"rounds": 3, "steps": STEPS},
            federation={"silos": 2, "minimum": 2, "threads": 1, **federation}, wire={"codec": "int8"},
        )  # fmt: skip
        path = tmp_path / "recipe.toml"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        return path

    return go


@pytest.fixture
def members(consortium, silos, tiny_base):
    """Two members whose silos are up, by name."""
    consortium.up()
    houses = {name: consortium.join(name, silos / name, tiny_base) for name in ("ash", "birch")}
    return {name: consortium.silo(house) for name, house in houses.items()}


@pytest.fixture
def expected(trained_once):
    """The adapter of the same run, inline, that nobody disturbed."""
    run = trained_once(
        data={"silos": ["silos/ash", "silos/birch"]}, training={"rounds": 3, "steps": STEPS},
        federation={"silos": 2, "minimum": 2, "threads": 1}, wire={"codec": "int8"},
    )  # fmt: skip
    return helpers.adapter(run / "run")


def asked(out, round_, kind="train"):
    """Whether both silos have been asked for a round."""
    return lambda: helpers.ledger_lines(out, kind=kind, direction="down", round=round_) >= 2


def answered(out, round_, count=1):
    return lambda: helpers.ledger_lines(out, kind="train", direction="up", round=round_) >= count


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def counted_once(out, rounds=3, silos=2):
    """Each round stands in the metrics once, and each silo's update once in each round."""
    found = lines(out)
    assert [line["round"] for line in found if line["silo"] is None] == list(range(rounds + 1))
    assert [line["round"] for line in found if line["silo"] == "ash" and line["train"]] == list(range(1, rounds + 1))
    assert all(line["silos"] == silos for line in found if line["silo"] is None and line["round"])


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(("silo worker",), marks=pytest.mark.long),
        pytest.param(("silo carrier",), marks=pytest.mark.long),
        ("silo worker", "silo carrier"),
    ],
)
def test_a_silo_whose_parts_are_killed_while_it_trains_comes_back(
    recipe_file, members, consortium, expected, tmp_path, parts
):
    """Killed in round 2, and (the worker alone) again while others upload; the round waits for it."""
    out = tmp_path / "run"
    process = consortium.start("train", "train", recipe_file(), *consortium.deployed, "--out", out)
    helpers.until(asked(out, 2), process)
    for part in parts:
        part_of(members["birch"], part).kill()
    if parts == ("silo worker",):
        helpers.until(answered(out, 3), process)
        part_of(members["birch"], "silo worker").kill()
    process.wait(helpers.PATIENCE)
    assert process.returncode == 0, consortium.logs()
    assert helpers.adapter(out) == expected
    counted_once(out)


@pytest.mark.long
def test_a_run_whose_own_process_is_killed_in_each_phase_goes_on_to_the_same_bits(
    recipe_file, members, consortium, expected, tmp_path
):
    out, path = tmp_path / "run", recipe_file()
    phases = {"joining": lambda: (out / "ledger.jsonl").exists(), "training": asked(out, 1), "collecting": answered(out, 2),
              "saving": lambda: helpers.rounds(out) >= 2}  # fmt: skip
    for phase, reached in phases.items():
        more = ("--resume", out) if out.exists() else ("--out", out)
        process = consortium.start(f"train-{phase}", "train", path, *consortium.deployed, *more)
        helpers.until(reached, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        del consortium.started[f"train-{phase}"]
    helpers.run("train", "--resume", out)
    assert helpers.adapter(out) == expected
    counted_once(out)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(("flower_superlink",), marks=pytest.mark.long),
        pytest.param(("gateway",), marks=pytest.mark.long),
        ("flower_superlink", "gateway"),
    ],
)
def test_a_server_whose_parts_are_killed_comes_back_and_the_run_goes_on_or_says_how(
    recipe_file, members, consortium, expected, tmp_path, parts
):
    out = tmp_path / "run"
    server = consortium.started["server"]
    process = consortium.start("train", "train", recipe_file(), *consortium.deployed, "--out", out)
    helpers.until(asked(out, 2), process)
    for part in parts:
        part_of(server, part).kill()
    process.wait(helpers.PATIENCE)
    if process.returncode:
        said = consortium.log("train").read_text()
        assert process.returncode == 3 and f"Go on with: silotune train --resume {out}" in said, said
        helpers.run("train", "--resume", out)
    assert helpers.adapter(out) == expected
    counted_once(out)


@pytest.mark.long
def test_a_silo_that_stands_still_beyond_the_timeout_is_left_out_where_enough_others_answer(
    recipe_file, members, consortium, tmp_path
):
    out = tmp_path / "run"
    path = recipe_file(minimum=1, round_timeout=20)
    process = consortium.start("train", "train", path, *consortium.deployed, "--out", out)
    helpers.until(asked(out, 2), process)
    worker = part_of(members["birch"], "silo worker")
    worker.suspend()
    helpers.until(lambda: helpers.rounds(out) >= 2, process)
    worker.resume()
    process.wait(helpers.PATIENCE)
    assert process.returncode == 0, consortium.logs()
    rounds = {line["round"]: line["silos"] for line in lines(out) if line["silo"] is None}
    assert rounds[1] == 2 and rounds[2] == 1 and rounds[3] in (1, 2)
    (reason,) = {line["reason"] for line in lines(out) if line["silo"] == "birch" and line["round"] == 2}
    assert "no answer within" in reason


def test_where_too_few_answer_the_run_ends_with_what_was_reached_and_one_command_to_go_on(
    recipe_file, members, consortium, expected, tmp_path
):
    out = tmp_path / "run"
    process = consortium.start("train", "train", recipe_file(round_timeout=30), *consortium.deployed, "--out", out)
    helpers.until(asked(out, 2), process)
    consortium.end("house-birch")
    process.wait(helpers.PATIENCE)
    said = consortium.log("train").read_text()
    assert process.returncode == 3 and "federation.minimum asks for 2" in said and "round 1 is saved" in said, said
    again = re.search(r"Go on with: silotune (train --resume \S+)", said)
    assert again
    consortium.silo(tmp_path / "house-birch")
    helpers.run(*again[1].split())
    assert helpers.adapter(out) == expected
    counted_once(out)


@pytest.mark.long
def test_a_member_that_comes_in_the_middle_is_not_of_the_run_and_one_that_is_expelled_is_out(
    recipe_file, members, consortium, silos, tiny_base, tmp_path
):
    """Who takes part in a run is settled when it begins."""
    out = tmp_path / "run"
    process = consortium.start("train", "train", recipe_file(minimum=1), *consortium.deployed, "--out", out)
    helpers.until(asked(out, 1), process)
    helpers.run("consortium", "pause", consortium.folder)
    consortium.silo(consortium.join("cedar", silos / "cedar", tiny_base))
    helpers.run("consortium", "expel", consortium.folder, "birch")
    assert "paused: no round begins" in helpers.run("consortium", "status", consortium.folder)
    helpers.run("consortium", "resume", consortium.folder)
    process.wait(helpers.PATIENCE)
    said = consortium.log("train").read_text()
    assert process.returncode == 0, said + consortium.logs()
    assert "left out: cedar: federation.members does not name it" in said
    assert "left out: birch: " in said
    assert not [line for line in lines(out) if line["silo"] == "cedar" and line["train"]]
    helpers.until(lambda: "does not take this node" in consortium.log("house-birch").read_text(), members["birch"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "change"),
    [("state", "cut"), ("state", "altered"), ("ledger", "cut"), ("adapter", "altered")],
)
def test_what_a_disk_has_spoilt_is_noticed(recipe_file, members, consortium, expected, tmp_path, place, change):
    out = tmp_path / "run"
    process = consortium.start("train", "train", recipe_file(), *consortium.deployed, "--out", out)
    helpers.until(lambda: helpers.rounds(out) >= 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    last = max((out / "state").glob("round-*"))
    spoilt = {"state": last / "state.safetensors", "ledger": out / "ledger.jsonl",
              "adapter": tmp_path / "house-ash" / "worker" / "memory"}[place]  # fmt: skip
    if place == "adapter":  # what a silo keeps of the run: its rounding error, and the adapter that it scored
        kept = list(spoilt.rglob("*.safetensors"))
        assert kept
        for path in kept:
            _spoil(path, change)
    else:
        _spoil(spoilt, change)
    done = helpers.start("train", "--resume", out)
    said = "".join(done.communicate(timeout=helpers.PATIENCE))
    if place == "state":
        assert done.returncode in (0, 2), said
    elif place == "ledger":
        assert done.returncode == 0, said
    if done.returncode == 0 and place != "adapter":
        assert helpers.adapter(out) == expected
        counted_once(out)
    assert "Traceback" not in said


def _spoil(path, change):
    whole = path.read_bytes()
    if change == "cut":
        path.write_bytes(whole[: len(whole) * 2 // 3])
    else:
        middle = len(whole) - 20
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0x40]) + whole[middle + 1 :])


@pytest.mark.long
def test_a_full_disk_of_the_server_ends_the_run_with_what_was_reached(
    recipe_file, members, consortium, expected, tmp_path
):
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=1m tmpfs {mount} 2>/dev/null"):
        pytest.skip("no file system of its own can be mounted here")
    try:
        out = mount / "run"
        process = consortium.start("train", "train", recipe_file(), *consortium.deployed, "--out", out)
        helpers.until(lambda: helpers.rounds(out) >= 1, process)
        (mount / "filler").write_bytes(b"x" * max(0, shutil.disk_usage(mount).free - 4096))
        process.wait(helpers.PATIENCE)
        said = consortium.log("train").read_text()
        assert (
            process.returncode == 3 and "cannot be written" in said and "Go on with: silotune train --resume" in said
        ), said
        (mount / "filler").unlink()
        helpers.run("train", "--resume", out)
        assert helpers.adapter(out) == expected
    finally:
        os.system(f"umount {mount}")
