"""Where the simulation engine puts what it needs."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from silotune.errors import FederationError
from silotune.federation import simulation
from silotune.federation.local import LocalSilos

SOCKETS = "session_2026-11-26_18-28-30_123456_1234567/sockets/plasma_store"
"""Below Ray's folder, with the longest number that a process can have."""


@pytest.mark.parametrize("length", [20, 25, 30, 40, 60, 90])
def test_rays_sockets_have_paths_that_a_system_takes_however_long_that_of_temporary_files_is(
    tmp_path_factory, monkeypatch, length
):
    root = Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))
    usual = root / ("x" * (length - len(str(root)) - 1))
    usual.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(usual))
    folder = simulation._ray_folder()
    assert len(os.fsencode(folder / SOCKETS)) <= 107
    assert (folder.parent == usual) == (length <= 20)
    for made in (folder, usual, root):
        made.rmdir()


def ray_that_fails(monkeypatch, times):
    import ray

    tried = []

    def init(**options):
        tried.append(options)
        if len(tried) <= times:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    return tried


def test_a_ray_that_comes_up_too_slowly_is_started_again(tmp_path, monkeypatch):
    """What the first try has left is ended before."""
    left = subprocess.Popen(
        [sys.executable, "-c", "input()", f"--session-dir={tmp_path}/session"], stdin=subprocess.PIPE
    )
    tried = ray_that_fails(monkeypatch, 1)
    simulation._start_ray(LocalSilos((), 2, 1, {}), tmp_path)
    assert len(tried) == 2
    left.wait(10)  # it raises where the process still runs
    assert tried[1]["num_cpus"] == 2 and tried[1]["_temp_dir"] == str(tmp_path)


def test_a_ray_that_is_there_already_is_taken_and_ends_with_the_run(tmp_path, monkeypatch):
    import ray

    tried, ended = ray_that_fails(monkeypatch, 99), []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(1))
    with simulation._ray(LocalSilos((), 2, 1, {}), tmp_path):
        assert not tried and not ended
    assert ended


def test_a_ray_that_never_comes_up_is_told(tmp_path, monkeypatch):
    tried = ray_that_fails(monkeypatch, 99)
    with pytest.raises(FederationError, match="did not start; see the log"):
        simulation._start_ray(LocalSilos((), 2, 1, {}), tmp_path)
    assert len(tried) == simulation.STARTS
