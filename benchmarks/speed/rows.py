"""The benchmark's own text: chats of one to six turns, made of the demo's questions and answers."""

import json
import random
from importlib import resources
from pathlib import Path

TEXTS = {"bank": ("bank",), "clinic": ("clinic",), "insurer": ("insurer",), "office": ("bank", "clinic", "insurer")}
"""Of each silo, the demo's silos from which it has its text."""
SILOS = tuple(TEXTS)


def write_silos(folder: Path, rows: int) -> None:
    """Write a folder a silo with `train.jsonl` and `test.jsonl`, the same text each time."""
    source = resources.files("silotune.demo") / "silos"
    for name, texts in TEXTS.items():
        pairs = [json.loads(line) for text in texts
                 for line in (source / text / "train.jsonl").read_text("utf-8").splitlines()]  # fmt: skip
        draw = random.Random(name)
        (folder / name).mkdir(parents=True)
        for split, count in (("train", rows), ("test", 2)):
            lines = [json.dumps({"messages": _chat(pairs, draw)}) for _ in range(count)]
            (folder / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _chat(pairs: list[dict[str, str]], draw: random.Random) -> list[dict[str, str]]:
    turns = []
    for pair in draw.sample(pairs, draw.choice((1, 1, 1, 2, 2, 3, 4, 6))):
        turns.append({"role": "user", "content": pair["instruction"]})
        turns.append({"role": "assistant", "content": pair["response"]})
    return turns
