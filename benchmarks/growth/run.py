"""Growth in the number of silos: writes results/DATE.json and DATE.svg. python -m benchmarks.growth.run

Time per silo-step and memory with 3 to 300 silos of a random model of two layers, inline, and memory of a simulation of
10 to 200 with two workers, one thread each; and the server's memory in a round to which 10 to 200 silos answer at once
with updates of 40 million parameters.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SILOS, MANY = (3, 10, 30, 100, 300), (10, 50, 200)


def measured(module: str, *given: object) -> dict[str, Any]:
    """What a module prints, in a process of its own with one thread."""
    command = [sys.executable, "-m", f"benchmarks.growth.{module}", *map(str, given)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, cwd=HERE.parents[1], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    print(result, flush=True)
    return result


def plot(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Flat lines, if all is well."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.8), layout="constrained")
    panels = (
        ("silos, inline", "ms per silo-step", "ms_per_silo_step", "inline"),
        ("silos, inline", "peak memory, MiB", "peak_mib", "inline"),
        ("silos, simulated", "peak memory, MiB", "peak_mib", "simulation"),
        ("silos that answer at once", "server's peak, in updates", "peak", "updates"),
    )
    for axes, (across, up, key, kind) in zip(figure.subplots(1, 4), panels, strict=True):
        points = [(one["silos"], one[key]) for one in found[kind]]
        axes.plot(*zip(*points, strict=True), "o-", color="#3b6fb6")
        axes.set(xscale="log", xlabel=across, ylabel=up, ylim=(0, 1.35 * max(y for _, y in points)))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, write, plot."""
    now = datetime.now(UTC)
    found = {
        "inline": [measured("silos", count) for count in SILOS],
        "simulation": [measured("silos", count, "simulation") for count in MANY],
        "updates": [measured("server", count) for count in MANY],
    }
    out = HERE / "results" / f"{now:%Y-%m-%d-%H%M}.json"
    out.parent.mkdir(exist_ok=True)
    result = {"date": now.isoformat(timespec="seconds"), "command": "python -m benchmarks.growth.run", **found}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(found, out.with_suffix(".svg"))
    print(out)


if __name__ == "__main__":
    main()
