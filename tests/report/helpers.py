"""Runs as they lie in a folder, made by hand: what the page tells of them is known beforehand."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from silotune.algorithms.interface import ServerState
from silotune.federation import checkpoint
from silotune.federation import run as run_folder
from silotune.federation.checkpoint import Saved
from silotune.federation.metrics import figures, round_line, silo_line
from silotune.federation.run import RunFolder
from silotune.recipe import check_recipe
from silotune.wire.profile import Profile

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A page taken apart; what is opened must be closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader reads, spaces run together."""
        return " ".join(" ".join(self.words).split())

    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.tags if "id" in attrs]


def make_run(path: Path, silos: int = 2, rounds: int = 2, names: list[str] | None = None, evaluate: bool = True,
             done: int | None = None, **recipe: Any) -> RunFolder:  # fmt: skip
    """A run whose silo i (from 0) has a loss of 3 + i of the base and 1 + i / r after round r, all 10 tokens each."""
    made = run_folder.create(check_recipe({"name": "made", "training": {"rounds": rounds}, **recipe}, "test"), path)
    names = names or [f"silo{index}" for index in range(silos)]
    profiles = {name: profile(name, index) for index, name in enumerate(names)}
    seconds = 1_700_000_000.0
    for index, name in enumerate(names):
        message(made, "down", f"node {index}", "join", 0, 100, node=index, time=seconds)
        message(made, "up", name, "join", 0, 200, node=index, time=seconds + 1)
    for round_ in range((rounds if done is None else done) + 1):
        seconds += 100
        lines = {}
        for index, name in enumerate(names):
            lines[name] = line = silo_line(round_, name, 5 if round_ else None, 1000, 500)
            if round_:
                line["train"] = {"steps": 2, "loss": 2.0 + index, "tokens": 9, "loss_tokens": 5, "seconds": 10.0}
                message(made, "down", name, "train", round_, 700, node=index, tensors=True, time=seconds)
                message(made, "up", name, "train", round_, 400, node=index, tensors=True, time=seconds + 10 + index,
                        fields={"seconds": 10.0, "loss": 2.0})  # fmt: skip
            if evaluate:
                loss = 1 + index / round_ if round_ else 3.0 + index
                line["evaluation"] = figures(loss * 10, 10, 4 + bool(round_)) | {"rows": 3}
                message(made, "down", name, "evaluate", round_, 300, node=index, tensors=True, time=seconds + 20)
                message(made, "up", name, "evaluate", round_, 100, node=index, time=seconds + 24,
                        fields={"seconds": 3.0})  # fmt: skip
        for line in lines.values():
            made.add_metrics(line)
        summary = round_line(round_, None, lines, 30.0, 1.0)
        made.add_metrics(summary | {"e_agg": 0.25 / round_ if round_ else None, "silos": len(names) if round_ else 0})
        state = ServerState(round_, {"a": np.zeros(2, np.float32)}, {})
        checkpoint.save(made, Saved(state, profiles, checkpoint.metrics_bytes(made)))
    return made


def profile(name: str, index: int) -> Profile:
    return Profile(name, "f" * 32, 5_000_000, 40 + index, 900, 500, 0, 3, 10, 0, 12_345, 1, "simulation", "0", "", "")


def message(
    run: RunFolder, direction: str, silo: str, kind: str, round_: int, size: int, *, node: int, time: float,
    tensors: bool = False, fields: Any = None, late: bool = False,
) -> None:  # fmt: skip
    """A line of the ledger."""
    from datetime import UTC, datetime

    line = {
        "time": datetime.fromtimestamp(time, UTC).isoformat(), "direction": direction, "silo": silo, "kind": kind,
        "round": round_, "bytes": size, "dtype": "float32" if tensors else None, "sha256": "0" * 64, "node": node,
        "late": late, "fields": fields or {},
        "tensors": [["m.0.q_proj.lora_A.weight", [2, 8]], ["m.0.q_proj.lora_B.weight", [8, 2]]] if tensors else [],
    }  # fmt: skip
    with run.ledger_file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def comparison(names: list[str], own: list[float], everybody: list[float], **more: Any) -> dict[str, Any]:
    """compare.json of these silos: base 3, pooled 1, federated 1.5, a silo alone 1.5 + its gain, on own rows and else."""
    models = ["base", "pooled", "federated", *(f"alone:{name}" for name in names)]
    score = {"seed": 0, "rows": 3, "tokens": 10, "token_accuracy": 0.5}

    def loss(model: str, silo: str | None) -> float:
        alone = model.removeprefix("alone:")
        gains = own if alone == silo else everybody
        return {"base": 3.0, "pooled": 1.0}.get(model, 1.5 + (gains[names.index(alone)] if alone in names else 0))

    gains = [{"silo": s, "own": o, "everybody": e} for s, o, e in zip(names, own, everybody, strict=True)]
    mean = {"own": sum(own) / len(own), "everybody": sum(everybody) / len(everybody)}
    return {
        "budget": {"text": "The same for all.", "rounds": 2, "batch": 4, "models": []},
        "matrix": [{"model": m, "silo": s, "loss": loss(m, s), **score} for m in models for s in names],
        "everybody": [{"model": m, "loss": loss(m, None), **score} for m in models],
        "gains": gains, "mean_gain": mean, "share_of_pooled_gain": 0.75, "seeds": [0],
        "intervals": [{"silo": silo, "on": on, "gain": 0.0, "t": None, "bootstrap": [-0.5, 0.5]} for silo in (*names, None) for on in mean],
        **more,
    }  # fmt: skip


def add_comparison(run: RunFolder, found: dict[str, Any]) -> None:
    (run.path / "compare.json").write_text(json.dumps(found), encoding="utf-8")
