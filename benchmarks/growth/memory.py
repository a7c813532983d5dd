"""Server memory while many updates are summed: the peak over what a process held before, beside one update.

python -m benchmarks.growth.memory [SILOS] [MILLIONS OF PARAMETERS]
"""

import json
import resource
import sys
import time
from collections.abc import Iterator

import numpy as np

from silotune.aggregation.interface import Cohort, Contribution, Round
from silotune.aggregation.mean import averaged
from silotune.model.adapter import AdapterSpec, unflatten


def main(silos: int, millions: float) -> None:
    """Aggregate made-up updates, each in an array of its own as one that has arrived, and tell the peak."""
    rank, width = 16, 4096  # as of an 8-billion-parameter Llama
    modules = round(millions * 1e6 / (2 * rank * width))
    shapes = {f"layer{i}.lora_{side}.weight": (rank, width) if side == "A" else (width, rank)
              for i in range(modules) for side in "AB"}  # fmt: skip
    start = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    one = 4 * sum(value.size for value in start.values())
    spec = AdapterSpec.of(start)
    cohort = Cohort({f"silo{i}": 1 + i % 7 for i in range(silos)})

    def arriving() -> Iterator[Contribution]:
        for number, (name, weight) in enumerate(cohort.weights.items()):
            array = np.full(one // 4, np.float32(1e-4 * (number % 13 - 6)))
            yield Contribution(name, unflatten(array, spec), weight)
            del array

    np.ones((512, 512)) @ np.ones((512, 512))  # what the linear algebra library takes once, whatever it is given
    before, began = _peak(), time.perf_counter()
    averaged(Round(start, spec.names, cohort), arriving())
    print(json.dumps({"silos": silos, "parameters": one // 4, "update_mib": one >> 20,
                      "peak_over_updates": round((_peak() - before) / one, 2),
                      "seconds_an_update": round((time.perf_counter() - began) / silos, 3)}))  # fmt: skip


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, float(sys.argv[2]) if len(sys.argv) > 2 else 40.0)
