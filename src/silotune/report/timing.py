"""Where the time of a round went, by the ledger's times of arrival and the seconds that silos say they worked.

A silo's answer that arrived at t and took s seconds of work is an interval [t - s, t]. The union of the intervals is
the time during which at least one silo worked; the rest of the round went into messages, starting processes,
averaging and saving, or waiting for silos. The server's clock alone is read: silos tell durations, not times.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from silotune.federation.metrics import RoundLine
from silotune.privacy.ledger import LedgerLine

Interval = tuple[float, float]
"""Beginning and end, seconds."""


@dataclass(frozen=True)
class Work:
    """One answer of a silo to a message that asked for work."""

    kind: str
    silo: str
    arrived: float
    """Seconds since the epoch."""
    seconds: float
    """That the silo says it worked."""


@dataclass(frozen=True)
class RoundTime:
    """A round's seconds."""

    round: int
    seconds: float
    """Seconds of the whole round, on the server's clock."""
    training: float
    """During which at least one silo trained."""
    evaluation: float
    """During which at least one silo evaluated and none trained."""
    silos: Mapping[str, Mapping[str, float]]
    """Seconds of work by silo and kind (`train`, `evaluate`)."""

    @property
    def rest(self) -> float:
        """Messages, starting, averaging, saving, and waiting for silos that did not answer."""
        return max(0.0, self.seconds - self.training - self.evaluation)


class Clock:
    """Answers by round, from lines of the ledger."""

    def __init__(self, entries: Iterable[LedgerLine] = ()) -> None:
        """Take in the messages that are there already."""
        self.answers: dict[int, list[Work]] = defaultdict(list)
        for entry in entries:
            self.add(entry)

    def add(self, line: LedgerLine) -> None:
        """Take in one message; only used answers of silos to a round's work count."""
        seconds, asked = (line.get("fields") or {}).get("seconds"), line.get("kind") in ("train", "evaluate")
        if line["direction"] == "up" and asked and not line.get("late") and seconds is not None:
            arrived = datetime.fromisoformat(line["time"]).timestamp()
            self.answers[line["round"]].append(Work(line["kind"], line["silo"], arrived, float(seconds)))

    def times(self, rounds: Sequence[RoundLine]) -> list[RoundTime]:
        """Divide the seconds of rounds, given by their own lines in metrics.jsonl."""
        return [divide(line["round"], line["seconds"], self.answers.get(line["round"], [])) for line in rounds]


def divide(round_: int, seconds: float, answers: Sequence[Work]) -> RoundTime:
    """Divide a round's seconds into training, evaluation and the rest.

    Only the last `seconds` before the last answer count: what came before was an attempt that was interrupted.
    """
    end = max((work.arrived for work in answers), default=0.0)
    begin = end - seconds
    spans: dict[str, list[Interval]] = defaultdict(list)
    silos: dict[str, dict[str, float]] = defaultdict(dict)
    for work in answers:
        if work.arrived >= begin:
            spans[work.kind].append((max(begin, work.arrived - work.seconds), work.arrived))
            silos[work.silo][work.kind] = work.seconds
    training, both = covered(spans["train"]), covered([*spans["train"], *spans["evaluate"]])
    return RoundTime(round_, seconds, training, both - training, silos)


def covered(intervals: Iterable[Interval]) -> float:
    """Length of the union of intervals, seconds."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
