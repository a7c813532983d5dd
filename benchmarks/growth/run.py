"""Growth in the number of silos: writes results/DATE.json and DATE.svg. python -m benchmarks.growth.run

Time per silo-step and the process's memory with 3 to 300 silos of a random model of two layers, inline, one thread; and
the server's memory in a round to which 10 to 200 silos answer at once with updates of 40 million parameters.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SILOS, UPDATES = (3, 10, 30, 100, 300), (10, 50, 200)


def measured(module: str, count: int) -> dict[str, Any]:
    """What a module prints for a count, in a process of its own with one thread."""
    command = [sys.executable, "-m", f"benchmarks.growth.{module}", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, cwd=HERE.parents[1], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    print(result, flush=True)
    return result


def plot(silos: list[dict[str, Any]], updates: list[dict[str, Any]], file: Path) -> None:
    """Three flat lines, if all is well."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    panels = (
        ("silos", "ms per silo-step", [(one["silos"], one["ms_per_silo_step"]) for one in silos]),
        ("silos", "peak MiB of the process", [(one["silos"], one["peak_mib"]) for one in silos]),
        ("silos that answer", "server's peak, in updates", [(one["silos"], one["peak"]) for one in updates]),
    )
    for axes, (across, up, points) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.plot(*zip(*points, strict=True), "o-", color="#3b6fb6")
        axes.set(xscale="log", xlabel=across, ylabel=up, ylim=(0, 1.35 * max(y for _, y in points)))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, write, plot."""
    now = datetime.now(UTC)
    silos = [measured("silos", count) for count in SILOS]
    updates = [measured("server", count) for count in UPDATES]
    out = HERE / "results" / f"{now:%Y-%m-%d-%H%M}.json"
    out.parent.mkdir(exist_ok=True)
    result = {"date": now.isoformat(timespec="seconds"), "command": "python -m benchmarks.growth.run", "silos": silos,
              "updates": updates}  # fmt: skip
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(silos, updates, out.with_suffix(".svg"))
    print(out)


if __name__ == "__main__":
    main()
