"""Real processes: start silotune as a user would, watch it, kill it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psutil

PATIENCE = 900
"""Seconds after which what should happen is taken not to: many, for they are spent where a test fails and nowhere else."""


def start(
    *arguments: object,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    python: str = sys.executable,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.PIPE,
) -> "subprocess.Popen[str]":
    """Start the command line in a session of its own, with its output kept in pipes if nothing else is said."""
    return subprocess.Popen(
        [python, "-m", "silotune.cli", *map(str, arguments)], stdout=stdout, stderr=stderr, text=True,
        start_new_session=True, cwd=cwd, env={**os.environ, **(env or {})},
    )  # fmt: skip


def run(
    *arguments: object,
    code: int = 0,
    cwd: Path | None = None,
    seconds: float = PATIENCE,
    env: dict[str, str] | None = None,
    python: str = sys.executable,
) -> str:
    """Run the command line to its end and return what it printed."""
    process = start(*arguments, cwd=cwd, env=env, python=python)
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == code, err + out
    return out


def ended(process: "subprocess.Popen[str]", seconds: float = PATIENCE) -> tuple[str, str]:
    """What a process printed until its end; one that has not ended after a while is killed."""
    try:
        return process.communicate(timeout=seconds)
    finally:
        process.kill()


def until(condition: Callable[[], object], process: "subprocess.Popen[str]", seconds: float = PATIENCE) -> None:
    """Wait for a condition while a process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, (process.communicate()[1] or "") + " (ended before it was time)"
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.002)


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """All processes below one."""
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process], seconds: float = 120) -> list[psutil.Process]:
    """Those of some processes that are still alive after a while."""
    return psutil.wait_procs(processes, timeout=seconds)[1]


def kill(process: "subprocess.Popen[str]") -> None:
    """kill -9, without a word."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def adapter(run_folder: Path) -> bytes:
    """The bytes of a run's adapter."""
    return (run_folder / "adapter" / "adapter_model.safetensors").read_bytes()


def rounds(run_folder: Path) -> int:
    """The last round that is saved, or -1."""
    found = [int(path.name.removeprefix("round-")) for path in (run_folder / "state").glob("round-*")]
    return max(found, default=-1)


def ledger_lines(run_folder: Path, **wanted: object) -> int:
    """How many messages of a kind the ledger holds."""
    path = run_folder / "ledger.jsonl"
    if not path.exists():
        return 0
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return sum(all(entry[key] == value for key, value in wanted.items()) for entry in entries)


def stopped_by_ctrl_c_and_resumed(recipe_file: Path, folder: Path, engine: str) -> None:
    """Stop a run in its second round by one Ctrl-C: it says how to go on, leaves no process, and goes on."""
    process = start("train", recipe_file, "--out", folder, "--set", f"federation.engine={engine}")
    until(lambda: ledger_lines(folder, kind="train", direction="up", round=2) >= 1, process)
    below = family(process)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert (
        re.search(r"silotune: Stopped by the user; round [12] is saved\. Go on with", err)
        and f"--resume {folder}" in err
        and "Traceback" not in err
    )
    assert not gone(below)
    run("train", recipe_file, "--resume", folder, "--set", f"federation.engine={engine}")
