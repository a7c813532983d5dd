"""The cache: whole or absent, built once, whoever starts and whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from silotune import cache

BUILDER = """
import sys, time
from pathlib import Path
from silotune import cache

here, number = Path(sys.argv[1]), sys.argv[2]

def build(folder):
    (folder / "part").write_text("1")
    (here / f"building-{number}").touch()
    time.sleep(float(sys.argv[3]))  # so that the other comes while it is being built
    (folder / "whole").write_text(number)

(here / f"ready-{number}").touch()
while not (here / "go").exists():
    time.sleep(0.01)
print(cache.build_once("models/x", build))
"""


def start(here, number, seconds):
    environment = {**os.environ, "SILOTUNE_HOME": str(here / "home")}
    command = [sys.executable, "-c", BUILDER, str(here), str(number), str(seconds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not come"
        time.sleep(0.01)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("SILOTUNE_HOME", str(tmp_path / "home"))
    return tmp_path


def test_two_processes_at_once_build_once(here):
    processes = [start(here, number, 1) for number in range(2)]
    for number in range(2):
        wait_for(here / f"ready-{number}")
    (here / "go").touch()
    said = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert said == [str(here / "home/models/x")] * 2 and not any(process.returncode for process in processes)
    built = list(here.glob("building-*"))
    assert len(built) == 1
    assert (Path(said[0]) / "whole").read_text() == built[0].name.removeprefix("building-")


def test_what_a_killed_builder_leaves_goes_with_the_next_build(here):
    (here / "go").touch()
    process = start(here, 0, 600)
    wait_for(here / "building-0")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    models = here / "home/models"
    assert len(list(models.glob(".x-*"))) == 1 and not (models / "x").exists()
    other = models / ".x-y-12345678"  # another name's, which may be at work
    other.mkdir()
    cache.build_once("models/x", lambda folder: (folder / "whole").write_text("2"))
    assert [path.name for path in models.glob(".x-*")] == [other.name]
    assert (models / "x/whole").read_text() == "2" and not (models / "x/part").exists()


def test_a_build_that_fails_leaves_nothing(here):
    def fail(folder):
        (folder / "part").write_text("1")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cache.build_once("models/y", fail)
    assert [path.name for path in (here / "home/models").iterdir()] in ([], ["y.lock"])
