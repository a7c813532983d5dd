"""Only the simulation's own processes are ended with it."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from tests.real.helpers import gone

from silotune.federation import reaper

WAIT = "import sys; sys.stdin.read()"
PARENT = "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', 'input()']); print(c.pid, flush=True); c.wait()"


@pytest.fixture
def start():
    """Start a process that stays until the end of the test."""
    started = []

    def make(*arguments, code=WAIT):
        process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.communicate()


def test_rays_processes_end_and_the_users_own_stay(tmp_path, start):
    ray_folder, scratch = tmp_path / "sr-1", tmp_path / "scratch"
    ray_folder.mkdir(), scratch.mkdir()
    before, other_run = start(), start(f"--session-dir={tmp_path}/sr-12/session")
    with reaper.reaped(ray_folder, scratch):
        during, reads_it = start(), start(ray_folder / "log.txt")
        raylet = start(f"--session_dir={ray_folder}/session", code=PARENT)
        below = psutil.Process(int(raylet.stdout.readline()))
    assert raylet.wait(10) in (0, -signal.SIGKILL) and not gone([below], 10)  # 0: its child was killed before it
    assert [p.poll() for p in (before, other_run, during, reads_it)] == [None] * 4
    assert not ray_folder.exists() and not scratch.exists()


def test_they_end_with_a_run_that_was_killed(tmp_path, start):
    ray_folder = tmp_path / "sr-1"
    ray_folder.mkdir()
    code = (
        "import subprocess, sys\nfrom pathlib import Path\nfrom silotune.federation import reaper\n"
        f"wait = [sys.executable, '-c', {WAIT!r}]\n"
        "with reaper.reaped(Path(sys.argv[1])):\n"
        "    ray = subprocess.Popen([*wait, f'--session-dir={sys.argv[1]}/s'], stdin=subprocess.PIPE)\n"
        "    own = subprocess.Popen([*wait, 'own'], stdin=sys.stdin)\n"
        "    print(ray.pid, own.pid, flush=True); own.wait()\n"
    )
    run = start(ray_folder, code=code)
    ray, own = map(psutil.Process, map(int, run.stdout.readline().split()))
    os.kill(run.pid, signal.SIGKILL)
    run.wait(10)
    assert not gone([ray], 20)
    assert own.is_running() and own.status() != psutil.STATUS_ZOMBIE
    own.kill()
