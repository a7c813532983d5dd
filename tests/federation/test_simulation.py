"""Where the simulation engine puts what it needs."""

import os
import tempfile
from pathlib import Path

import pytest

from silotune.federation import simulation

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
