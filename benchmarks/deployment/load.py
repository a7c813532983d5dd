"""Large adapters and many members: python -m benchmarks.deployment.load [MEMBERS] [MIB OF AN ADAPTER]

Real silos over TLS on this machine, each of which trains one step of a small model whose adapter is made large by its
rank: seconds of a round, and the largest resident memory of every kind of process.
"""

import json
import os
import sys
import threading
from typing import Any

from benchmarks.deployment.members import consortium_of, parts, state_mib, taken, write_recipe

ROUNDS = 2
WIDTH, LAYERS = 1024, 4


def measure(members: int, mib: int) -> dict[str, Any]:
    """Run some rounds, and watch the processes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # Of each layer four matrices of attention carry factors A and B: 2 * WIDTH numbers of four bytes per rank.
    rank = max(1, min(1024, (mib << 20) // (4 * LAYERS * 4 * 2 * WIDTH)))
    peak: dict[str, float] = {}
    over = threading.Event()
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
             "num_key_value_heads": 8}  # fmt: skip
    with consortium_of(members, **sizes) as consortium:
        recipe = write_recipe(
            consortium, lora={"r": rank, "alpha": 2 * rank, "targets": "attention"},
            training={"rounds": ROUNDS, "steps": 1, "batch": 1},
            federation={"silos": members, "minimum": members, "threads": 1, "engine": "inline"},
            evaluation={"every": ROUNDS},
        )  # fmt: skip
        for house in consortium.folder.parent.glob("house-*"):
            rules = house / "policy.toml"
            rules.write_text(rules.read_text().replace("max_rank = 64", "max_rank = 1024"))
        for name in [name for name in consortium.started if name.startswith("house-")]:
            consortium.end(name)
            consortium.silo(consortium.folder.parent / name)

        def watch() -> None:
            while not over.wait(0.2):
                for name, process in parts(consortium).items():
                    kind = name.split()[-1]
                    peak[kind] = max(peak.get(kind, 0.0), taken(process)["mib"])

        thread = threading.Thread(target=watch, daemon=True)
        run = consortium.folder.parent / "run"
        process = consortium.start("train", "train", recipe, *consortium.deployed, "--out", run)
        thread.start()
        code = process.wait(1800)
        over.set()
        thread.join()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
        update = max(line["bytes"] for line in ledger)
        return {"members": members, "code": code, "rank": rank, "update_mib": round(update / 2**20, 1),
                "rounds": [round(line["seconds"], 1) for line in lines if line["silo"] is None], "peak_mib": peak,
                "state_mib": state_mib(consortium)}  # fmt: skip


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    print(json.dumps(measure(*(given + [2, 160][len(given) :]))))
