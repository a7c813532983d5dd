"""What a run's files add up to: the figures that the card, the page and the demo tell."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from silotune.federation.checkpoint import latest
from silotune.federation.run import RunFolder


@dataclass(frozen=True)
class SiloFigures:
    """One silo over the whole run."""

    name: str
    train_rows: int
    test_rows: int
    text_bytes: int
    cut: int
    losses: Mapping[int, float]
    """Held-out loss by round, in nats a token; round 0 is the base."""
    accuracies: Mapping[int, float]
    """Held-out token accuracy by round."""
    train_losses: Mapping[int, float]
    bytes_up: int
    bytes_down: int
    left_out: Sequence[tuple[int, str]]
    """(round, reason)."""

    @property
    def before(self) -> float | None:
        """Held-out loss of the base."""
        return self.losses.get(0)

    @property
    def after(self) -> float | None:
        """Held-out loss after the last round that was evaluated."""
        return self.losses[max(self.losses)] if self.losses and max(self.losses) > 0 else None


@dataclass(frozen=True)
class RunFigures:
    """A whole run."""

    silos: Sequence[SiloFigures]
    rounds: Sequence[Mapping[str, Any]]
    """The lines of metrics.jsonl that are about a round."""
    base_bytes: int
    messages: int
    """In the ledger."""

    @property
    def means(self) -> Mapping[int, Mapping[str, float]]:
        """Held-out figures by round, over all silos, weighted by held-out tokens."""
        return {line["round"]: line["evaluation"] for line in self.rounds if line["evaluation"]}


class Traffic:
    """Bytes from and to each silo, from lines of the ledger in their order.

    What goes to a node before its silo has said its name is added to that silo's when it has.
    """

    def __init__(self) -> None:
        """Nothing has been sent yet."""
        self.messages = 0
        self._bytes: dict[tuple[str, str], int] = defaultdict(int)

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one message."""
        self.messages += 1
        self._bytes[line["silo"], line["direction"]] += line["bytes"]
        before = f"node {line.get('node')}"
        if before != line["silo"]:
            for direction in ("up", "down"):
                self._bytes[line["silo"], direction] += self._bytes.pop((before, direction), 0)

    def up(self, silo: str) -> int:
        """Bytes that left a silo."""
        return self._bytes.get((silo, "up"), 0)

    def down(self, silo: str) -> int:
        """Bytes that were sent to a silo."""
        return self._bytes.get((silo, "down"), 0)


def gather(run: RunFolder) -> RunFigures:
    """Add up a run's metrics and ledger."""
    lines = run.metrics()
    saved = latest(run)
    profiles = saved.profiles if saved else {}
    traffic = Traffic()
    for entry in run.ledger():
        traffic.add(entry)
    silos = []
    for name, profile in sorted(profiles.items()):
        own = [line for line in lines if line["silo"] == name]
        silos.append(
            SiloFigures(
                name=name,
                train_rows=profile.train_rows,
                test_rows=profile.test_rows,
                text_bytes=profile.text_bytes,
                cut=profile.train_cut + profile.test_cut,
                losses={line["round"]: line["evaluation"]["loss"] for line in own if line["evaluation"]},
                accuracies={line["round"]: line["evaluation"]["token_accuracy"] for line in own if line["evaluation"]},
                train_losses={line["round"]: line["train"]["loss"] for line in own if line["train"]},
                bytes_up=traffic.up(name),
                bytes_down=traffic.down(name),
                left_out=[(line["round"], line["reason"]) for line in own if line["status"] != "ok"],
            )
        )
    base_bytes = max((profile.base_bytes for profile in profiles.values()), default=0)
    return RunFigures(silos, [line for line in lines if line["silo"] is None], base_bytes, traffic.messages)


def human_bytes(count: float) -> str:
    """Bytes in the unit that reads best, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
