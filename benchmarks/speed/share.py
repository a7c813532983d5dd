"""How near the loops come to the machine's matrix-product rate, and how much work they do for a token: one thread.

Prints JSON: for the bare loop and for silotune's, on the benchmark's rows, GFLOP a real token (counted by PyTorch), the
GFLOP/s reached, their share of what large products reach in the same process, and where the time of a step goes.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.arms import ALPHA, BATCH, LENGTH, RANK, ROWS, STEPS, _padded, _peft_model, _random_batches
from benchmarks.speed.rows import write_silos

KINDS = {
    "matrix products": ("mm", "addmm", "bmm"),
    "attention": (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "copies": ("copy_", "cat", "index", "clone"),
}
"""PyTorch's own operations."""
BATCHES = 2
"""Of the round, so that the whole stays within minutes."""


def plain_step(data: Path) -> tuple[Callable[[], None], int]:
    """Forward and backward of the bare loop over a silo's rows, and their real tokens."""
    model, tokenizer = _peft_model()
    batches = [_padded(rows, tokenizer) for rows in _random_batches(data, tokenizer, 1)[:BATCHES]]

    def step() -> None:
        for batch in batches:
            model(**batch).loss.backward()

    return step, sum(int(batch["attention_mask"].sum()) for batch in batches)


def our_step(data: Path) -> tuple[Callable[[], None], int]:
    """The same of silotune's."""
    import torch

    from silotune.data.read.reading import Reading
    from silotune.data.silos.batches import collate, plan_round
    from silotune.data.tokenize.split import Split
    from silotune.data.tokenize.store import open_store
    from silotune.model.base import place
    from silotune.model.tuner import tuner
    from silotune.settings import LoraSettings, TrainingSettings
    from silotune.training.forward import forward_plan_of, losses
    from silotune.training.kept import Keep

    resident = tuner("smollm2-135m", LoraSettings(r=RANK, alpha=ALPHA), place("cpu", "auto"))
    store = open_store([str(data)], Reading(), resident.tokenizer, LENGTH)
    examples = Split(store, torch.arange(store.size).numpy())
    plan = plan_round(TrainingSettings(steps=STEPS, batch=BATCH), examples.lengths, 0, "bank", 1)
    batches = [collate([examples[row] for row in rows], 0, "cpu") for step in plan[:BATCHES] for rows in step]
    forward_plan = forward_plan_of(resident.model.train(), "cpu", 0.0, Keep())

    def step() -> None:
        for batch in batches:
            losses(resident.model, batch, forward_plan).sum().backward()

    return step, sum(int(batch.mask.sum()) for batch in batches)


def measured(step: Callable[[], None], tokens: int) -> dict[str, Any]:
    """Count and time a step, between two looks at the matrix-product rate."""
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.speed.run import matrix_rate

    with FlopCounterMode(display=False) as counter:
        step()
    rate_before, began = matrix_rate(1), time.perf_counter()
    step()
    seconds = time.perf_counter() - began
    rate = (rate_before + matrix_rate(1)) / 2
    work = counter.get_total_flops() / 1e9
    return {
        "gflop_per_token": round(work / tokens, 3),
        "tokens_per_s": round(tokens / seconds, 1),
        "gflops": round(work / seconds, 1),
        "matrix_gflops": round(rate, 1),
        "share": round(work / seconds / rate, 3),
    }


def where(step: Callable[[], None]) -> dict[str, float]:
    """Shares of a step's time by kind of operation, as PyTorch's profiler sees them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    own = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in seen.key_averages()}
    parts = {kind: sum(own.get(name, 0) for name in names) / sum(own.values()) for kind, names in KINDS.items()}
    return {kind: round(part, 3) for kind, part in (parts | {"rest": 1 - sum(parts.values())}).items()}


def main() -> None:
    """Measure both loops."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        write_silos(Path(made), ROWS)
        data = Path(made) / "bank" / "train.jsonl"
        plain, (ours, tokens) = measured(*plain_step(data)), our_step(data)
        print(json.dumps({"plain": plain, "ours": measured(ours, tokens), "time of ours": where(ours)}))


if __name__ == "__main__":
    main()
