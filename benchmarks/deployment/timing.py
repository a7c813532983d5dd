"""What a deployment costs beside the inline engine: python -m benchmarks.deployment.timing

Two silos over TLS on this machine with the embedded model, and the same run inline, one thread each: seconds of a
round, of joining and of an evaluation; CPU seconds and memory of the carrier, by message.
"""

import json
import os
from pathlib import Path
from typing import Any

from tests.real import helpers

from benchmarks.deployment.members import consortium_of, parts, taken, write_recipe

ROUNDS, STEPS, BATCH = 4, 4, 4
SECTIONS: dict[str, dict[str, object]] = {
    "lora": {"r": 8, "alpha": 16, "layers": "upper-half"},
    "training": {"rounds": ROUNDS, "steps": STEPS, "batch": BATCH},
    "federation": {"silos": 2, "minimum": 2, "threads": 1, "engine": "inline"},
}


def rounds_of(run: Path) -> list[float]:
    """Seconds of each round, the base's scoring first."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [round(line["seconds"], 2) for line in lines if line["silo"] is None]


def between(run: Path, kind: str, round_: int) -> float:
    """Seconds from the first request of a kind in a round to the last answer, by the server's ledger."""
    from datetime import datetime

    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    times = {way: [datetime.fromisoformat(line["time"]) for line in lines
                   if (line["kind"], line["round"], line["direction"]) == (kind, round_, way)]
             for way in ("down", "up")}  # fmt: skip
    return round((max(times["up"]) - min(times["down"])).total_seconds(), 2)


def measure() -> dict[str, Any]:
    """Run both, and compare their bits."""
    from silotune.model.base import locate

    os.environ["OMP_NUM_THREADS"] = "1"
    base = Path(locate("smollm2-135m"))
    with consortium_of(2, base, rows=40) as consortium:
        recipe, folder = write_recipe(consortium, base, **SECTIONS), consortium.folder.parent
        helpers.run("train", recipe, "--out", folder / "inline")
        before = {name: taken(process) for name, process in parts(consortium).items()}
        consortium.train(recipe, folder / "first")
        consortium.train(recipe, folder / "deployed")
        after = {name: taken(process) for name, process in parts(consortium).items()}
        messages = 2 * helpers.ledger_lines(folder / "deployed", silo="silo-00", direction="up")
        carriers = [name for name in after if name.endswith("carrier")]
        return {
            "same_bits": helpers.adapter(folder / "inline") == helpers.adapter(folder / "deployed"),
            "inline_rounds": rounds_of(folder / "inline"), "deployed_rounds": rounds_of(folder / "deployed"),
            "first_join": between(folder / "first", "join", 0), "join": between(folder / "deployed", "join", 0),
            "evaluation": between(folder / "deployed", "evaluate", 1), "messages_per_silo": messages,
            "carrier_cpu_per_message": round(
                sum(after[name]["cpu"] - before[name]["cpu"] for name in carriers) / len(carriers) / messages, 3
            ),
            "processes": after,
        }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
