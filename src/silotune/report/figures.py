"""What a run's files add up to: the figures that the card, the page and the demo tell."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from silotune.federation.checkpoint import known_silos
from silotune.federation.metrics import Evaluation, RoundLine, SiloLine
from silotune.federation.run import RunFolder
from silotune.privacy.ledger import LedgerLine
from silotune.report.timing import Clock, RoundTime
from silotune.report.traffic import Traffic


@dataclass(frozen=True)
class SiloFigures:
    """One silo over the whole run."""

    name: str
    train_rows: int
    test_rows: int
    text_bytes: int
    cut: int
    losses: Mapping[int, float]
    """Held-out loss by round, in nats per token; round 0 is the base."""
    accuracies: Mapping[int, float]
    """Held-out token accuracy by round."""
    tokens: Mapping[int, int]
    """Held-out tokens that were scored, by round."""
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
        return self.losses[self.last] if self.last else None

    @property
    def last(self) -> int:
        """The last round that this silo evaluated; 0 where there is none but the base."""
        return max(self.losses, default=0)

    @property
    def fall(self) -> float | None:
        """How far the held-out loss fell: positive is better than the base."""
        return self.before - self.after if self.before is not None and self.after is not None else None


@dataclass(frozen=True)
class Change:
    """Held-out figures of the base and after the last evaluated round, over the silos that have both."""

    round: int
    silos: int
    better: int
    """Silos whose loss fell."""
    loss: tuple[float, float]
    """Base and tuned, nats per token, weighted by held-out tokens."""
    token_accuracy: tuple[float, float]

    @property
    def perplexity(self) -> tuple[float, float]:
        """Base and tuned: exp of the loss."""
        before, after = (math.exp(min(loss, 700.0)) for loss in self.loss)
        return before, after


@dataclass(frozen=True)
class RunFigures:
    """A whole run."""

    silos: Sequence[SiloFigures]
    rounds: Sequence[RoundLine]
    """The lines of metrics.jsonl that are about a round."""
    base_bytes: int
    isolation: Mapping[str, str]
    """How each silo's text is kept apart, as it said (`wire.profile.Profile`)."""
    traffic: Traffic
    times: Sequence[RoundTime]
    finished: bool

    @property
    def messages(self) -> int:
        """In the ledger."""
        return self.traffic.messages

    @property
    def means(self) -> Mapping[int, Evaluation]:
        """Held-out figures by round, over all silos, weighted by held-out tokens."""
        return {line["round"]: line["evaluation"] for line in self.rounds if line["evaluation"]}

    @property
    def done(self) -> int:
        """Rounds that are saved."""
        return max((line["round"] for line in self.rounds), default=0)

    @property
    def change(self) -> Change | None:
        """What the run did to the held-out loss; None where no silo scored both the base and a later round."""
        last = max(self.means, default=0)
        both = [silo for silo in self.silos if silo.before is not None and last and silo.last == last]
        tokens = sum(silo.tokens[last] for silo in both)
        if not tokens:
            return None

        def mean(of: str, round_: int) -> float:
            return float(sum(getattr(silo, of)[round_] * silo.tokens[last] for silo in both) / tokens)

        better = sum(silo.losses[last] < silo.losses[0] for silo in both)
        loss, accuracy = ((mean(of, 0), mean(of, last)) for of in ("losses", "accuracies"))
        return Change(last, len(both), better, loss, accuracy)

    @property
    def not_taken_in(self) -> Sequence[tuple[str, str | None]]:
        """Who answered the first question and was not taken in when the last round was saved, and why."""
        if not self.rounds:
            return []
        known = {silo.name for silo in self.silos}
        return sorted((name, why) for name, why in self.traffic.asked_to_join.items() if name not in known)


@dataclass
class Books:
    """What the ledger adds up to so far."""

    traffic: Traffic
    clock: Clock

    @classmethod
    def empty(cls) -> "Books":
        """Before the first message."""
        return cls(Traffic(), Clock())

    def add(self, entries: Iterable[LedgerLine]) -> "Books":
        """Take further messages in."""
        for entry in entries:
            self.traffic.add(entry)
            self.clock.add(entry)
        return self


def gather(run: RunFolder, books: Books | None = None) -> RunFigures:
    """Add up a run's metrics and ledger.

    Args:
        run: finished, or going on: what is saved so far.
        books: what the ledger adds up to, where the caller has read it already.
    """
    lines = run.metrics()
    profiles = known_silos(run)
    books = books or Books.empty().add(run.ledger())
    own: dict[str, list[SiloLine]] = {name: [] for name in profiles}
    for line in lines:
        if line["silo"] is not None:
            own.get(line["silo"], []).append(line)
    silos = []
    for name, profile in sorted(profiles.items()):
        scored = [(line["round"], line["evaluation"]) for line in own[name] if line["evaluation"]]
        silos.append(
            SiloFigures(
                name=name,
                train_rows=profile.train_rows,
                test_rows=profile.test_rows,
                text_bytes=profile.text_bytes,
                cut=profile.train_cut + profile.test_cut,
                losses={round_: score["loss"] for round_, score in scored},
                accuracies={round_: score["token_accuracy"] for round_, score in scored},
                tokens={round_: score["tokens"] for round_, score in scored},
                train_losses={line["round"]: line["train"]["loss"] for line in own[name] if line["train"]},
                bytes_up=books.traffic.up(name),
                bytes_down=books.traffic.down(name),
                left_out=[(line["round"], line["reason"]) for line in own[name] if line["reason"]],
            )
        )
    base_bytes = max((profile.base_bytes for profile in profiles.values()), default=0)
    rounds = [line for line in lines if line["silo"] is None]
    isolation = {name: profile.isolation for name, profile in profiles.items()}
    return RunFigures(silos, rounds, base_bytes, isolation, books.traffic, books.clock.times(rounds), run.finished())


def digests(run: RunFolder) -> Mapping[str, tuple[str, int]]:
    """SHA-256 and bytes of the files of a finished run's adapter, by name."""
    found = {}
    for path in sorted(run.adapter.glob("adapter_*")):
        found[path.name] = (_digest(path), path.stat().st_size)
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def human_bytes(count: float) -> str:
    """Bytes in the unit that reads best, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
