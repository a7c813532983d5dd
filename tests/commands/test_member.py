"""`silotune silo`: what a silo remembers is deleted by one command, and nothing else is."""

import json

import numpy as np
import pytest

from silotune.silo.identity import public_key
from silotune.silo.memory import Memory


@pytest.fixture
def folder(tmp_path, silos):
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "silo.toml").write_text(
        f'name = "north"\ndata = "{silos}/ash"\nmemory = "../memory"\n[superlink]\naddress = "h:1"\n'
    )
    return tmp_path / "house"


def test_key(call, tmp_path, folder):
    code, out, err = call("silo", "key", folder)
    assert (code, err) == (0, "") and out.strip() == public_key(tmp_path / "memory")
    code, out, err = call("silo", "key", folder, "--json")
    assert json.loads(out)["key"] == public_key(tmp_path / "memory")


def test_forget(call, tmp_path, folder):
    for run in ("0" * 16, "1" * 16):
        Memory(tmp_path / "memory", run, "north").keep(1, {"x": np.zeros(2, np.float32)})
    code, out, err = call("silo", "forget", folder, "--json")
    assert (code, err) == (0, "") and json.loads(out)["runs"] == 2 and not (tmp_path / "memory").exists()


def test_what_is_no_memory_stays(call, tmp_path, folder):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "text.jsonl").write_text("{}")
    code, out, err = call("silo", "forget", folder)
    assert (code, out) == (2, "") and "not the folder of a silo's memory" in err
    assert (tmp_path / "memory" / "text.jsonl").exists()
