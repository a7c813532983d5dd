"""Whatever becomes of a command's streams and of the disk below it: one message, a documented exit code, state saved."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from tests.real.helpers import PATIENCE
from tests.test_cli import call

import silotune
from silotune.errors import OutputError, RunError
from silotune.recipe import dump_recipe

__all__ = ["call"]
pytestmark = pytest.mark.real
SILOTUNE = [sys.executable, "-m", "silotune.cli"]


def shell(command: str, *arguments):
    """Run a command line of the shell, in which $SILOTUNE is the program."""
    words = " ".join(SILOTUNE)
    done = subprocess.run(["bash", "-c", command.replace("$SILOTUNE", words), "bash", *map(str, arguments)],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False)  # fmt: skip
    assert "Traceback" not in done.stderr and "defect" not in done.stderr, done.stderr
    return done


@contextmanager
def small_disk(folder, size):
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def recipe(make_recipe, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(make_recipe(training={"rounds": 3})), encoding="utf-8")
    return path


@pytest.fixture
def whole(trained_once):
    """The adapter of the run that nothing happens to."""
    return adapter(trained_once(training={"rounds": 3}) / "run")


def adapter(run):
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_ends_as_it_should_without_its_streams(recipe, whole, tmp_path):
    done = shell('$SILOTUNE train "$1" --out "$2" <&- >&- 2>&-', recipe, tmp_path / "run")
    assert done.returncode == 0 and adapter(tmp_path / "run") == whole


def test_a_reader_that_goes_away_stops_the_run_and_is_told_what_is_saved(recipe, whole, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen([*SILOTUNE, "train", str(recipe), "--out", str(run), "--json"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    for line in process.stdout:
        if json.loads(line)["event"] == "round":
            break
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(PATIENCE) == 3
    assert err.startswith("silotune: whoever read standard output has gone. ") and err.count("\n") == 1
    assert "is saved" in err and f"silotune train --resume {run}" in err
    silotune.train(resume=run)
    assert adapter(run) == whole


def test_a_progress_that_nobody_reads_any_more_stops_nothing(recipe, whole, tmp_path):
    done = shell('{ $SILOTUNE train "$1" --out "$2"; echo $? > "$3"; } 2>&1 >/dev/null | head -1',
                 recipe, tmp_path / "run", tmp_path / "code")  # fmt: skip
    assert done.stdout.startswith("run folder") and (tmp_path / "code").read_text() == "0\n"
    assert adapter(tmp_path / "run") == whole


@pytest.mark.parametrize("command", ["check RECIPE", "--help"])
def test_output_that_cannot_be_written_is_told(recipe, command):
    done = shell(f"$SILOTUNE {command.replace('RECIPE', str(recipe))} >/dev/full")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "silotune: standard output cannot be written (No space left on device)."


def test_a_disk_that_is_full_keeps_what_is_saved_and_the_run_goes_on_when_there_is_room(recipe, whole, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "120k") as remount:
        done = shell('$SILOTUNE train "$1" --out "$2"', recipe, disk / "run")
        said = done.stderr.splitlines()[-1]
        assert done.returncode == 3 and "No space left on device" in said and "is saved" in said, said
        assert f"Go on with: silotune train --resume {disk / 'run'}" in said
        remount("size=4m,ro")
        with pytest.raises(OutputError, match=r"Read-only file system.* is saved"):
            silotune.train(resume=disk / "run")
        remount("rw")
        silotune.train(resume=disk / "run")
        assert adapter(disk / "run") == whole


@pytest.mark.parametrize("size", ["12k", "28k", "60k", "200k"])
def test_wherever_the_room_ends_there_is_one_message_and_nothing_is_lost(recipe, whole, tmp_path, size):
    disk = tmp_path / "disk"
    with small_disk(disk, size) as remount:
        try:
            silotune.train(recipe, out=disk / "run")
        except (OutputError, RunError) as error:
            assert "No space left on device" in str(error)
        remount("size=4m")
        if (disk / "run").exists():
            silotune.train(resume=disk / "run")
            assert adapter(disk / "run") == whole


def test_a_folder_that_is_lost_in_the_middle_is_told(recipe, tmp_path):
    run = tmp_path / "run"

    def watch(event):
        if event.kind == "round":
            shutil.rmtree(run)

    with pytest.raises(OutputError, match=r"the run.s folder is gone, and the run with it\. Start again"):
        silotune.train(recipe, out=run, watch=watch)


def test_what_is_made_of_a_run_is_whole_or_not_there(recipe, finished_run, tmp_path, call):
    run, disk = finished_run().path, tmp_path / "disk"
    with small_disk(disk, "64k"):
        shutil.copytree(run, disk / "run", ignore=shutil.ignore_patterns("report.html", "state", "log.txt", "*.jsonl"))
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(b"\0" * 4096)
        for command in (("export", run, "--to", "merged", "--out", disk / "merged"), ("init", disk / "new"),
                        ("export", run, "--to", "adapter", "--out", disk / "a"), ("report", disk / "run"),
                        ("check", recipe, "--plot", disk / "p.svg"), ("train", recipe, "--out", disk / "other")):  # fmt: skip
            code, _, err = call(*command)
            said = err.splitlines()[-1]
            assert code in (2, 3) and said.startswith("silotune: ") and "No space left" in said, (command, said)
            assert "Traceback" not in err and "defect" not in err
        assert {path.name for path in disk.iterdir()} == {"run", "filler"}
