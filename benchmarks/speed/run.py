"""All arms in turn: `make bench`. Writes results/DATE.json and DATE.svg and prints a table.

The machine's own matrix product is timed before each pass, so that speeds of one run can be set against it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.speed.arms import ARMS, BATCH, ROUNDS, ROWS, STEPS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = {
    "plain": "bare PEFT loop",
    "trainer": "Trainer, base loaded anew",
    "inline": "silotune, inline",
    "simulation": "silotune, simulation",
    "upper": "upper third",
    "kept": "upper third, kept activations",
}


def matrix_rate(threads: int) -> float:
    """GFLOP/s of float32 products of this machine, all threads together, the best of ten."""
    import torch

    torch.set_num_threads(threads)
    one, other = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        one @ other
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best / 1e9


def share_of_matrix_rate() -> dict[str, Any]:
    """What part of the matrix-product rate the loops reach, in a process of one thread."""
    command = [sys.executable, "-m", "benchmarks.speed.share"]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=_environment(1)).stdout
    share: dict[str, Any] = json.loads(told.splitlines()[-1])
    return share


def _environment(threads: int) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def run_arm(arm: str, threads: int) -> dict[str, Any]:
    """One arm in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.arms", arm]
    done = subprocess.run(
        command,
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env=_environment(threads) | {"BENCH_BEGAN": str(time.time())},
    )
    if done.returncode:
        sys.exit(f"{arm} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(passes: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians over the passes, and each arm's speed beside that of the others in the same pass."""
    found: dict[str, dict[str, Any]] = {}
    for arm in passes[0]:
        runs = [one[arm] for one in passes]
        found[arm] = {
            key: statistics.median(run.get(key, 0.0) for run in runs) for key in ("tokens_per_s", "peak_mib", "start_s")
        }
        found[arm]["overhead"] = statistics.median(run["wall_s"] / run["train_s"] - 1 for run in runs)
        for other in passes[0]:
            ratios = [one[arm]["tokens_per_s"] / one[other]["tokens_per_s"] for one in passes]
            found[arm][f"over {other}"] = statistics.median(ratios)
    return found


def plot(result: dict[str, Any], file: Path) -> None:
    """Bars of real tokens a second, with the range over the passes."""
    from matplotlib.figure import Figure

    arms = list(result["summary"])
    speeds = [[one[arm]["tokens_per_s"] for one in result["passes"]] for arm in arms]
    middle = [statistics.median(one) for one in speeds]
    spread = [[m - min(one) for m, one in zip(middle, speeds, strict=True)],
              [max(one) - m for m, one in zip(middle, speeds, strict=True)]]  # fmt: skip
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#9aa5b1" if arm in ("plain", "trainer") else "#3b6fb6" for arm in arms]
    bars = axes.barh([NAMES[arm] for arm in arms], middle, xerr=spread, color=colours, ecolor="#333")
    axes.bar_label(bars, [f"{value:.0f}" for value in middle], padding=12)
    axes.invert_yaxis()
    axes.set_xlabel("real tokens a second, four silos, two cores")
    axes.set_xlim(0, max(map(max, speeds)) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Run all arms and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, help="a JSON file; else results/DATE.json")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    passes, rates = [], []
    for number in range(options.passes):
        rates.append(matrix_rate(cores))
        print(f"pass {number + 1}: matrix products at {rates[-1]:.0f} GFLOP/s", flush=True)
        done = {}
        for arm in options.arms:
            done[arm] = run_arm(arm, cores)
            print(f"  {NAMES[arm]:32}{done[arm]['tokens_per_s']:7.1f} tokens/s", flush=True)
        passes.append(done)
    now = datetime.now(UTC)
    result = {
        "date": now.isoformat(timespec="seconds"), "command": "make bench", "machine": platform.machine(),
        "cores": cores, "python": platform.python_version(),
        "work": {"rounds": ROUNDS, "steps": STEPS, "batch": BATCH, "rows": ROWS},
        "matrix_gflops": rates, "share": share_of_matrix_rate(), "summary": summary(passes), "passes": passes,
    }  # fmt: skip
    (HERE / "results").mkdir(exist_ok=True)
    out = options.out or HERE / "results" / f"{now:%Y-%m-%d-%H%M}.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result, out.with_suffix(".svg"))
    print(table(result))
    print(f"share of the matrix-product rate: {result['share']}\n{out}")


def table(result: dict[str, Any]) -> str:
    """The summary in Markdown."""
    lines = ["| | tokens/s | against the bare loop | against inline | overhead of a round | peak MiB |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for arm, figures in result["summary"].items():
        against = [
            f"{figures[f'over {other}']:.2f}" if f"over {other}" in figures else "-" for other in ("plain", "inline")
        ]
        lines.append(f"| {NAMES[arm]} | {figures['tokens_per_s']:.0f} | {' | '.join(against)} | "
                     f"{figures['overhead']:.1%} | {figures['peak_mib']:.0f} |")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
