"""What a training took, by its lines in metrics.jsonl."""

from collections.abc import Iterable
from dataclasses import dataclass

from silotune.federation.metrics import Line


@dataclass(frozen=True)
class Spent:
    """What a training took."""

    rounds: int
    steps: int
    """Number of optimizer steps."""
    tokens: int
    loss_tokens: int


def spent_by(lines: Iterable[Line]) -> dict[str, Spent]:
    """What each silo's training took, from lines of metrics.jsonl; of updates that counted."""
    found: dict[str, Spent] = {}
    for line in lines:
        if line["silo"] is not None and line["train"] and line["status"] == "ok":
            before, now = found.get(line["silo"], Spent(0, 0, 0, 0)), line["train"]
            found[line["silo"]] = Spent(
                before.rounds + 1,
                before.steps + now["steps"],
                before.tokens + now["tokens"],
                before.loss_tokens + now["loss_tokens"],
            )
    return found


def total(spent: Iterable[Spent], rounds: int) -> Spent:
    """What several silos spent together."""
    listed = list(spent)
    return Spent(rounds, *(sum(getattr(one, name) for one in listed) for name in ("steps", "tokens", "loss_tokens")))
