"""Seconds per silo-step from 3 to 300 silos, with a random model of two layers, inline: what a silo more costs.

python -m benchmarks.growth.silos SILOS
"""

import json
import resource
import sys
import tempfile
from pathlib import Path

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


def run(count: int) -> None:
    """Train that many silos of 16 rows and print what a silo-step took, and the process's peak memory."""
    import silotune

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
            '[federation]\nengine = "inline"\nthreads = 1\n[evaluation]\nevery = 0\n'
        )
        done = silotune.train(folder / "r.toml", out=folder / "run")
        lines = [line for line in done.metrics() if 0 < line["round"] < ROUNDS and line["silo"] is None]
        seconds = sum(line["seconds"] for line in lines) / (len(lines) * count * STEPS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"silos": count, "ms_per_silo_step": round(1000 * seconds, 2), "peak_mib": round(peak)}))


if __name__ == "__main__":
    run(int(sys.argv[1]))
