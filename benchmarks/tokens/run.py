"""Tokenising a silo, against the tokenizers library on the same strings: rows in memory, and from file to store.

Rows are the demo's training rows, numbered, so that anybody has them: python benchmarks/tokens/run.py [ROWS]
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from silotune.data.read.reading import Reading, read_rows
from silotune.data.tokenize.chat_template import template_of
from silotune.data.tokenize.store import open_store
from silotune.data.tokenize.template_layout import rendered
from silotune.data.tokenize.tokens import encode
from silotune.model.base import load_tokenizer, locate


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def write_rows(folder: Path, count: int) -> str:
    silos = resources.files("silotune.demo") / "silos"
    rows = [json.loads(line) for name in ("bank", "clinic", "insurer")
            for line in (silos / name / "train.jsonl").read_text("utf-8").splitlines()]  # fmt: skip
    path = folder / "train.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            context = " ".join(other["response"] for other in rows[number % 50 : number % 50 + 5])
            file.write(json.dumps({**row, "instruction": f"{number}: {row['instruction']} {context}"}) + "\n")
    return str(path)


def main(count: int) -> None:
    tokenizer = load_tokenizer(locate("smollm2-135m"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SILOTUNE_HOME"] = folder
        path = write_rows(Path(folder), count)
        rows = [row for _, row in read_rows([path], Reading())]
        texts = [one.text for row in rows for one in rendered(template_of(tokenizer), row.turns, row.tools)]
        backend = tokenizer.backend_tokenizer
        library, encoded = timed(lambda: backend.encode_batch_fast(texts, add_special_tokens=False))
        tokens = sum(len(one.ids) for one in encoded)
        del encoded
        in_memory, _ = timed(lambda: [encode(tokenizer, rows[i : i + 512], 512) for i in range(0, count, 512)])
        ours, _ = timed(lambda: open_store([path], Reading(), tokenizer, 512))
        again, _ = timed(lambda: open_store([path], Reading(), tokenizer, 512))
    print(json.dumps({"rows": count, "tokens": tokens, "library_s": round(library, 3),
                      "rows_in_memory_s": round(in_memory, 3), "ratio": round(in_memory / library, 2),
                      "file_to_store_s": round(ours, 3), "ratio_file_to_store": round(ours / library, 2),
                      "again_s": round(again, 4)}))  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
