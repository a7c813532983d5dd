"""How near to the machine's matrix-product rate the resident loop comes: one thread, on the benchmark's rows."""

import json
import tempfile
import time
from pathlib import Path

from benchmarks.speed.arms import ALPHA, BATCH, LENGTH, RANK, ROWS, STEPS
from benchmarks.speed.rows import write_silos


def main(steps: int = STEPS) -> None:
    """Count the floating-point operations of some steps, time the same steps, and set them against large products."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.speed.run import matrix_rate
    from silotune.data.batches import collate, plan_round
    from silotune.data.reading import Reading
    from silotune.data.store import Split, open_store
    from silotune.model.base import place
    from silotune.model.tuner import tuner
    from silotune.settings import LoraSettings, TrainingSettings
    from silotune.training.forward import loss_and_correct, ways_of
    from silotune.training.kept import Keep

    torch.set_num_threads(1)
    resident = tuner("smollm2-135m", LoraSettings(r=RANK, alpha=ALPHA), place("cpu", "auto"))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "silos"
        folder.mkdir()
        write_silos(folder, ROWS)
        store = open_store([str(folder / "bank" / "train.jsonl")], Reading(), resident.tokenizer, LENGTH)
        examples = Split(store, torch.arange(store.size).numpy())
        plan = plan_round(TrainingSettings(steps=steps, batch=BATCH), examples.lengths, 0, "bank", 1)
        batches = [collate([examples[row] for row in rows], 0, "cpu") for step in plan for rows in step]
    ways = ways_of(resident.model.train(), "cpu", 0.0, Keep())
    tokens = sum(int(batch.mask.sum()) for batch in batches)
    rate_before = matrix_rate(1)

    def step() -> None:
        for batch in batches:
            loss_and_correct(resident.model, batch, ways)[0].backward()

    with FlopCounterMode(display=False) as counter:
        step()
    began = time.perf_counter()
    step()
    seconds = time.perf_counter() - began
    rate = (rate_before + matrix_rate(1)) / 2
    reached = counter.get_total_flops() / seconds / 1e9
    print(json.dumps({"gflops": round(reached, 1), "matrix_gflops": round(rate, 1), "share": round(reached / rate, 3),
                      "gflop_per_token": round(counter.get_total_flops() / tokens / 1e9, 3),
                      "tokens_per_s": round(tokens / seconds, 1)}))  # fmt: skip


if __name__ == "__main__":
    main()
