"""One arm of the benchmark, in a process of its own: prints one line of JSON.

    plain        bare PyTorch and PEFT: random batches padded to their longest row, full logits, one resident base
    trainer      a transformers Trainer for every silo and round, which loads the base anew, as federated examples do
    inline       silotune, engine "inline"
    simulation   silotune, engine "simulation", 2 workers
    kept         silotune, engine "inline", adapters in the upper third, kept activations
    upper        the same without kept activations

All train the same silos for the same rounds, steps and rows a step, at the same rate; factors are averaged. A round
is a pass over all rows: what is kept in the first is used in the others.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.speed.rows import SILOS, write_silos

ROUNDS, STEPS, BATCH, RATE, LENGTH = 3, 4, 4, 1e-3, 512
ROWS = STEPS * BATCH
"""Of a silo: a round is a pass over them."""
RANK, ALPHA = 8, 16
Result = dict[str, Any]


def federated(train: Callable[[Path, int], tuple[int, float]], folder: Path) -> Result:
    """Run the rounds with `train(data, round)` for each silo; it gives tokens and seconds of steps."""
    tokens, inside, began = 0, 0.0, time.perf_counter()
    for round_ in range(ROUNDS):
        for name in SILOS:
            counted, steps = train(folder / "silos" / name / "train.jsonl", round_)
            tokens, inside = tokens + counted, inside + steps
    wall = time.perf_counter() - began
    return {"tokens": tokens, "wall_s": wall, "train_s": inside}


def plain(folder: Path) -> Result:
    """A resident base with PEFT's own factors, swapped for each silo; the loop of most examples."""
    import torch

    model, tokenizer = _peft_model()
    factors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in factors.items()}
    sums: dict[str, Any] = {}

    def train(data: Path, round_: int) -> tuple[int, float]:
        with torch.no_grad():
            for name, p in factors.items():
                p.copy_(start[name])
        optimizer = torch.optim.AdamW(factors.values(), lr=RATE)
        tokens, began = 0, time.perf_counter()
        for rows in _random_batches(data, tokenizer, round_):
            batch = _padded(rows, tokenizer)
            tokens += int(batch["attention_mask"].sum())
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(factors.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - began
        for name, p in factors.items():
            sums[name] = sums.get(name, 0) + p.detach() / len(SILOS)
        if data.parent.name == SILOS[-1]:
            start.update(sums)
            sums.clear()
        return tokens, seconds

    return federated(train, folder)


def trainer(folder: Path) -> Result:
    """A Trainer and a freshly loaded base for every silo and round."""
    import torch
    import transformers

    state: dict[str, Any] = {}
    sums: dict[str, Any] = {}

    def train(data: Path, round_: int) -> tuple[int, float]:
        model, tokenizer = _peft_model()
        factors = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, value in state.items():
                factors[name].copy_(value)
        rows = [row for batch in _random_batches(data, tokenizer, round_) for row in batch]
        tokens = sum(len(row["input_ids"]) for row in rows)
        with tempfile.TemporaryDirectory() as out:
            settings = transformers.TrainingArguments(
                out, per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=RATE, report_to=[], use_cpu=True,
                logging_strategy="no", save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
            )  # fmt: skip
            began = time.perf_counter()
            transformers.Trainer(
                model, settings, train_dataset=rows, data_collator=lambda chosen: _padded(chosen, tokenizer)
            ).train()
            seconds = time.perf_counter() - began
        for name, p in factors.items():
            sums[name] = sums.get(name, 0) + p.detach() / len(SILOS)
        if data.parent.name == SILOS[-1]:
            state.update(sums)
            sums.clear()
        return tokens, seconds

    return federated(train, folder)


def _peft_model() -> tuple[Any, Any]:
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from silotune.model.base import locate

    base = locate("smollm2-135m")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    return peft.get_peft_model(model, config).train(), AutoTokenizer.from_pretrained(base)


def _random_batches(data: Path, tokenizer: Any, round_: int) -> list[list[dict[str, Any]]]:
    """The round's rows in random batches, tokenised with the chat template, loss on the answers."""
    import random

    from silotune.data.read.reading import Reading, read_rows
    from silotune.data.tokenize.tokens import encode

    rows = [row for _, row in read_rows([str(data)], Reading())]
    chosen = random.Random(round_).sample(rows, STEPS * BATCH)
    found = []
    for (example,) in encode(tokenizer, chosen, LENGTH):
        labels = [int(i) if answered else -100 for i, answered in zip(example.ids, example.answered, strict=True)]
        found.append({"input_ids": example.ids.tolist(), "labels": labels})
    return [found[start : start + BATCH] for start in range(0, len(found), BATCH)]


def _padded(rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    import torch

    length = max(len(row["input_ids"]) for row in rows)
    pad = tokenizer.pad_token_id or 0
    return {
        "input_ids": torch.tensor([row["input_ids"] + [pad] * (length - len(row["input_ids"])) for row in rows]),
        "labels": torch.tensor([row["labels"] + [-100] * (length - len(row["labels"])) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows]
        ),
    }


def ours(folder: Path, *overrides: str) -> Result:
    """silotune itself; seconds of rounds and of training come from the run's metrics."""
    import silotune

    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[data]\nsilos = "silos/*"\nmax_length = {LENGTH}\n[lora]\nr = {RANK}\nalpha = {ALPHA}\n'
        f"[training]\nrounds = {ROUNDS + 1}\nsteps = {STEPS}\nbatch = {BATCH}\nlearning_rate = {RATE}\n"
        "[evaluation]\nevery = 0\n",
        encoding="utf-8",
    )
    events: list[tuple[float, str]] = []
    began = float(os.environ.get("BENCH_BEGAN", time.time()))  # of the process, importing included
    run = silotune.train(recipe, out=folder / "run", overrides=overrides,
                         watch=lambda event: events.append((time.time(), event.kind)))  # fmt: skip
    # The last round is evaluated; the others are training and what is around it.
    lines = [line for line in run.metrics() if 0 < line["round"] <= ROUNDS]
    silos = [line["train"] for line in lines if line["silo"] is not None]
    rounds = [line["seconds"] for line in lines if line["silo"] is None]
    first = next(at for at, kind in events if kind == "round_start")
    evaluated = next(line["seconds"] for line in run.metrics() if line["round"] == 0 and line["silo"] is None)
    workers = 2 if "federation.engine=simulation" in overrides else 1
    busy = sum(
        _makespan([line["train"]["seconds"] for line in lines if line["silo"] is not None and line["round"] == round_],
                  workers)
        for round_ in range(1, ROUNDS + 1)
    )  # fmt: skip
    return {"tokens": sum(line["tokens"] for line in silos), "wall_s": sum(rounds),
            "train_s": busy, "start_s": first - began - evaluated}  # fmt: skip


def _makespan(seconds: list[float], workers: int) -> float:
    """What the work takes where nothing else does: the longest first, each to whoever is free."""
    loads = [0.0] * workers
    for one in sorted(seconds, reverse=True):
        loads[loads.index(min(loads))] += one
    return max(loads)


ARMS: dict[str, Callable[[Path], Result]] = {
    "plain": plain,
    "trainer": trainer,
    "inline": lambda folder: ours(folder, "federation.engine=inline"),
    "simulation": lambda folder: ours(folder, "federation.engine=simulation", "federation.workers=2"),
    "upper": lambda folder: ours(folder, "federation.engine=inline", "lora.layers=upper-third", "model.keep=off"),
    "kept": lambda folder: ours(folder, "federation.engine=inline", "lora.layers=upper-third"),
}


class Peak:
    """The most that this process and all below it held, pages that several share counted once; seen twice a second."""

    def __init__(self) -> None:
        self.kib, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        own = psutil.Process()
        while not self.done.wait(0.5):
            self.kib = max(self.kib, sum(map(_proportional_kib, [own, *own.children(recursive=True)])))

    def stop(self) -> float:
        """The peak in MiB."""
        self.done.set()
        self.thread.join()
        return self.kib / 1024


def _proportional_kib(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main(arm: str) -> None:
    """Run an arm in a folder of its own."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_silos(folder / "silos", ROWS)
        peak = Peak()
        result = ARMS[arm](folder)
    result |= {"arm": arm, "tokens_per_s": result["tokens"] / result["wall_s"], "peak_mib": peak.stop(),
               "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))}  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
