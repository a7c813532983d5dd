"""Silos trained apart and in one pass (`federation.together`): the resident loop on the benchmark's rows.

The two take turns in one process, for each number of rows in a batch: the same silos, rows and steps, each once to warm
up and then `--passes` times. Prints JSON: real tokens a second (the median over the passes), how many times faster in
one pass, and what padding costs: tokens with padding for each real one.

Threads are OMP_NUM_THREADS, as torch reads it when it starts.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.arms import ALPHA, LENGTH, RANK, RATE
from benchmarks.speed.rows import SILOS, write_silos

STEPS = 4


def main() -> None:
    """Time both for each size of batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--layers", choices=("all", "upper-third"), default="all")
    options = parser.parse_args()
    import torch

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "silos"
        write_silos(folder, STEPS * max(options.batches))
        work = _work(folder, options.layers)
        found = [_measured(work, batch, options.passes) for batch in options.batches]
    print(json.dumps({"threads": torch.get_num_threads(), "cores": len(os.sched_getaffinity(0)), "silos": len(SILOS),
                      "steps": STEPS, "layers": options.layers, "batches": found}, indent=1))  # fmt: skip


def _work(folder: Path, layers: str) -> dict[str, Any]:
    """The resident model, its ways, the silos' rows and an adapter to begin with."""
    import numpy as np

    from silotune.data.read.reading import Reading
    from silotune.data.tokenize.split import Split
    from silotune.data.tokenize.store import open_store
    from silotune.model.adapter import initial_adapter
    from silotune.model.base import place
    from silotune.model.tuner import tuner
    from silotune.settings import LoraSettings
    from silotune.training.forward import forward_plan_of
    from silotune.training.kept import Keep

    resident = tuner("smollm2-135m", LoraSettings(r=RANK, alpha=ALPHA, layers=layers), place("cpu", "auto"))
    stores = {name: open_store([str(folder / name / "train.jsonl")], Reading(), resident.tokenizer, LENGTH)
              for name in SILOS}  # fmt: skip
    return {
        "tuner": resident,
        "ways": forward_plan_of(resident.model, "cpu", 0.0, Keep()),
        "splits": {name: Split(store, np.arange(store.size)) for name, store in stores.items()},
        "adapter": initial_adapter(resident.spec, 0),
    }


def _measured(work: dict[str, Any], batch: int, passes: int) -> dict[str, Any]:
    from silotune.settings import TrainingSettings

    settings = TrainingSettings(steps=STEPS, batch=batch, rounds=1, learning_rate=RATE)
    speeds: dict[str, list[float]] = {"apart": [], "together": []}
    tokens, furthest = 0, 0.0
    for number in range(passes + 1):
        came_to = {}
        for way, train in (("apart", _apart), ("together", _together)):
            began = time.perf_counter()
            tokens, came_to[way] = train(work, settings)
            if number:
                speeds[way].append(tokens / (time.perf_counter() - began))
        furthest = max(furthest, _furthest(came_to["apart"], came_to["together"]))
    ratios = [one / other for one, other in zip(speeds["together"], speeds["apart"], strict=True)]
    return {
        "batch": batch, "tokens": tokens, "padded": _padded(work, settings),
        "tokens_per_s": {way: round(statistics.median(found), 1) for way, found in speeds.items()},
        "together_over_apart": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
        "furthest_apart": furthest,
    }  # fmt: skip


def _apart(work: dict[str, Any], settings: Any) -> tuple[int, list[Any]]:
    from silotune.training.local_run import TrainingTask
    from silotune.training.loop import train_round

    tokens, adapters = 0, []
    for name, split in work["splits"].items():
        task = TrainingTask(name, split, work["adapter"], frozenset(work["adapter"]))
        totals, adapter = train_round(work["tuner"], work["ways"], task, settings, 0, 1)
        tokens += totals.tokens
        adapters.append(adapter)
    return tokens, adapters


def _together(work: dict[str, Any], settings: Any) -> tuple[int, list[Any]]:
    from silotune.training.local_run import TrainingTask
    from silotune.training.together import train_together

    parts = [
        TrainingTask(name, split, work["adapter"], frozenset(work["adapter"])) for name, split in work["splits"].items()
    ]
    results = [one.result() for one in train_together(work["tuner"], work["ways"], parts, settings, 0, 1)]
    return sum(totals.tokens for totals, _ in results), [adapter for _, adapter in results]


def _furthest(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference of any number of any adapter."""
    return max(
        float(abs(one[name] - other[name]).max()) for one, other in zip(ours, theirs, strict=True) for name in one
    )


def _padded(work: dict[str, Any], settings: Any) -> dict[str, float]:
    """Tokens with padding for each real token."""
    from silotune.data.silos.batches import plan_round

    plans = []
    for name, split in work["splits"].items():
        plan = plan_round(settings, split.lengths, 0, name, 1)
        plans.append([[int(split.lengths[row]) for row in rows] for step in plan for rows in step])
    real = sum(sum(rows) for plan in plans for rows in plan)
    sizes: dict[str, Callable[[], int]] = {
        "apart": lambda: sum(len(rows) * max(rows) for plan in plans for rows in plan),
        "together": lambda: sum(
            sum(map(len, at_once)) * max(map(max, at_once)) for at_once in zip(*plans, strict=True)
        ),
    }
    return {way: round(size() / real, 3) for way, size in sizes.items()}


if __name__ == "__main__":
    main()
