"""What one silo more costs, with a random model of two layers: seconds per silo-step, and memory of all processes.

python -m benchmarks.growth.silos SILOS [inline | simulation]
"""

import json
import sys
import tempfile
import threading
from pathlib import Path

import psutil

STEPS, ROUNDS = 4, 3


def make_base(folder: Path) -> None:
    """A random Llama of two layers with the embedded model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from silotune.model.base import load_tokenizer, locate

    tokenizer = load_tokenizer(locate("smollm2-135m"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Peak(threading.Thread):
    """The largest resident memory of this process and all that it has started, looked at ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.over = 0, threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.over.wait(0.1):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    memory = process.memory_full_info()
                except psutil.Error:  # it has ended
                    continue
                total += memory.pss  # what is shared counts once
            self.bytes = max(self.bytes, total)


def run(count: int, engine: str) -> None:
    """Train that many silos of 16 rows and print what a silo-step took, and the peak of memory."""
    import silotune

    peak = Peak()
    peak.start()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_base(folder / "base")
        for number in range(count):
            silo = folder / "silos" / f"s{number:03d}"
            silo.mkdir(parents=True)
            lines = [json.dumps({"question": f"Where is {number}-{i}?", "answer": f"On shelf {i * number % 97}."})
                     for i in range(20)]  # fmt: skip
            (silo / "train.jsonl").write_text("\n".join(lines))
        (folder / "r.toml").write_text(
            f'[model]\nbase = "base"\n[training]\nrounds = {ROUNDS}\nsteps = {STEPS}\nbatch = 4\n'
            f'[federation]\nengine = "{engine}"\nthreads = 1\nworkers = 2\n[evaluation]\nevery = 0\n'
        )
        done = silotune.train(folder / "r.toml", out=folder / "run")
        lines = [line for line in done.metrics() if 0 < line["round"] < ROUNDS and line["silo"] is None]
        seconds = sum(line["seconds"] for line in lines) / (len(lines) * count * STEPS)
    peak.over.set()
    print(json.dumps({"silos": count, "engine": engine, "ms_per_silo_step": round(1000 * seconds, 2),
                      "peak_mib": peak.bytes >> 20}))  # fmt: skip


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "inline")
