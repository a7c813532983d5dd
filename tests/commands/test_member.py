"""`silotune silo`: what a silo remembers is deleted by one command, and nothing else is."""

import json

import numpy as np

from silotune.silo.identity import public_key
from silotune.silo.memory import Memory, default_root


def test_key(call, tmp_path):
    code, out, err = call("silo", "key", tmp_path / "memory")
    assert (code, err) == (0, "") and out.strip() == public_key(tmp_path / "memory")
    code, out, err = call("silo", "key", "--json")  # of the folder that a node has if nobody says
    assert json.loads(out)["key"] == public_key(default_root())


def test_forget(call, tmp_path):
    for run in ("0" * 16, "1" * 16):
        Memory(tmp_path / "memory", run, "north").keep(1, {"x": np.zeros(2, np.float32)})
    code, out, err = call("silo", "forget", tmp_path / "memory", "--json")
    assert (code, err) == (0, "") and json.loads(out)["runs"] == 2 and not (tmp_path / "memory").exists()


def test_what_is_no_memory_stays(call, tmp_path):
    (tmp_path / "text.jsonl").write_text("{}")
    code, out, err = call("silo", "forget", tmp_path)
    assert (code, out) == (2, "") and "not the folder of a silo's memory" in err and (tmp_path / "text.jsonl").exists()
