"""Many rounds in which silos fail at random: python -m benchmarks.deployment.soak [ROUNDS] [MEMBERS]

Three members of a small model; before each round a share of them, drawn from a seed, has its worker or its carrier
killed. Memory, open files and disk of every process by round: flat, if all is well.
"""

import json
import os
import random
import sys
import time
from typing import Any

import psutil
from tests.real import helpers

from benchmarks.deployment.members import consortium_of, parts, state_mib, taken, write_recipe

SHARE = 0.2
"""Of the silos that fail in a round."""


def measure(rounds: int, members: int) -> dict[str, Any]:
    """Run, and break silos as it goes on."""
    os.environ["OMP_NUM_THREADS"] = "1"
    drawn, seen, killed = random.Random(0), list[dict[str, Any]](), {"worker": 0, "carrier": 0}
    began = time.monotonic()
    with consortium_of(members) as consortium:
        recipe = write_recipe(
            consortium, training={"rounds": rounds, "steps": 2, "batch": 2}, lora={"r": 2, "alpha": 4},
            federation={"silos": members, "minimum": 1, "threads": 1, "engine": "inline", "round_timeout": 60},
            evaluation={"every": 10}, wire={"codec": "int8"},
        )  # fmt: skip
        run = consortium.folder.parent / "run"
        process = consortium.start("train", "train", recipe, *consortium.deployed, "--out", run)
        last = -1
        while process.poll() is None:
            now = helpers.rounds(run)
            if now == last:
                time.sleep(0.1)
                continue
            last = now
            running = parts(consortium)
            if last % 5 == 0:
                figures = {name: _taken(running[name]) for name in running}
                seen.append({"round": last, "seconds": round(time.monotonic() - began, 1),
                             "state_mib": state_mib(consortium), **figures})  # fmt: skip
                told = ("round", "seconds", "train", "superlink", "gateway")
                print(json.dumps({key: seen[-1].get(key) for key in told}), flush=True)
            for name, part in running.items():
                kind = name.split()[-1]
                # A carrier that is killed is away for a minute or two, until the server has noticed.
                share = SHARE if kind == "worker" else SHARE / 20 if kind == "carrier" else 0.0
                if drawn.random() < share:
                    try:
                        part.kill()
                        killed[kind] += 1
                    except psutil.Error:
                        continue
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        counted = [line["silos"] for line in lines if line["silo"] is None and line["round"]]
        left_out = [line["reason"] for line in lines if line["silo"] is not None and line["reason"]]
        return {"code": process.returncode, "rounds": last, "members": members, "killed": killed,
                "rounds_of_all": counted.count(members), "least_silos": min(counted), "left_out": len(left_out),
                "reasons": sorted(set(left_out)), "seen": seen}  # fmt: skip


def _taken(process: psutil.Process) -> dict[str, float] | None:
    try:
        return taken(process)
    except psutil.Error:
        return None


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    print(json.dumps(measure(*(given + [200, 3][len(given) :]))))
