"""A run that is looked at while it goes on: what is new is read, and the page is drawn again when a round is saved."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from silotune.errors import RunError
from silotune.federation.run import RunFolder, worked_on
from silotune.privacy.ledger import LedgerLine
from silotune.report import page
from silotune.report.figures import Books, RunFigures
from silotune.report.render import duration, environment
from silotune.report.timing import Work
from silotune.settings import Recipe
from silotune.silo.progress import ProgressState, read_progress


@dataclass
class Tail:
    """The lines of a file that only grows, as they come; one that is written at this moment waits for its end."""

    path: Path
    offset: int = 0

    def read(self) -> Iterator[LedgerLine]:
        """Yield lines that are new since the last call; torn ones are passed over."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


@dataclass
class Following:
    """One run. Calls may come from several threads; one is served at a time."""

    run: RunFolder
    _books: Books = field(default_factory=Books.empty)
    _version: str = ""
    _content: Mapping[str, object] | None = None
    _main: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._ledger = Tail(self.run.ledger_file)

    def page(self) -> str:
        """The whole page, with what keeps it up to date."""
        with self._lock:
            content = self._fresh()
            return environment().get_template("page.html.j2").render(live=True, version=self._version, **content)

    def main(self) -> tuple[str, str]:
        """(version, the part of the page that changes)."""
        with self._lock:
            self._fresh()
            return self._version, self._main

    def status(self) -> dict[str, object]:
        """What goes on at this moment, for JSON: `version`, `state`, `words`, `round`, `rounds`, `silos`.

        `state` is `finished`, `running` or `stopped`.
        """
        with self._lock:
            content = self._fresh()
            figures, recipe = content["figures"], content["recipe"]
            assert isinstance(figures, RunFigures) and isinstance(recipe, Recipe)
            rounds = recipe.training.rounds
            running = worked_on(self.run)
            state = "running" if running else "finished" if figures.finished else "stopped"
            silos = self._silos(figures, figures.done + 1 if figures.rounds else 0) if running else []
            words = self._words(state, figures, rounds)
            return {"version": self._version, "state": state, "words": words, "round": figures.done, "rounds": rounds,
                    "silos": silos}  # fmt: skip

    def _fresh(self) -> Mapping[str, object]:
        """What the page tells, gathered again if anything in the run folder is new that it tells of.

        While a state is being replaced it cannot be read: then what was gathered before stands until the next call.
        """
        self._books.add(self._ledger.read())
        version = self._stamp()
        if self._content is None or version != self._version:
            try:
                content = page.content(self.run, self._books)
            except (RunError, FileNotFoundError):
                if self._content is None:
                    raise
                return self._content
            self._main = environment().get_template("templates/main.html.j2").render(**content)
            self._content, self._version = content, version
        return self._content

    def _stamp(self) -> str:
        """Changes when a round, samples, a comparison or the adapter is written; not with each message."""
        run = self.run
        files = (run.metrics_file, run.path / "compare.json", run.path / "samples.json", run.adapter)
        states = sorted(path.name for path in run.states.glob("round-*"))
        told = [states[-1:], run.finished(), *((stat.st_mtime_ns, stat.st_size) for stat in map(_stat, files) if stat)]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def _words(self, state: str, figures: RunFigures, rounds: int) -> str:
        if state == "finished":
            return f"The run has come to its end after {rounds} rounds."
        if state == "stopped":
            return (
                f"Nobody works on this run now; {figures.done} of {rounds} rounds are saved. Go on with: silotune "
                f"train --resume {self.run.path.name}"
            )
        if not figures.rounds:
            joined = sum(reason is None for reason in self._books.traffic.asked_to_join.values())
            return f"The silos load the base model and score it; {joined} have said what they hold."
        if figures.done >= rounds and self.run.report_file.exists():
            return "The run has come to its end; a comparison of it goes on."
        if figures.done >= rounds:
            return "All rounds are done; the adapter and this page are being written."
        past = [line["seconds"] for line in figures.rounds if line["round"]]
        left = f" About {duration(sum(past) / len(past) * (rounds - figures.done))} left." if past else ""
        return f"Round {figures.done + 1} of {rounds} goes on.{left}"

    def _silos(self, figures: RunFigures, round_: int) -> Sequence[dict[str, object]]:
        """Each silo's doings in the round that goes on."""
        progress = read_progress(self.run.scratch) if self.run.scratch.is_dir() else {}
        joined = {name for name, why in self._books.traffic.asked_to_join.items() if not why}
        names = {silo.name for silo in figures.silos} | joined
        answered = {(work.silo, work.kind): work for work in self._books.clock.answers.get(round_, ())}
        return [_doing(name, round_, progress.get(name, {}), answered) for name in sorted(names)]


def _doing(name: str, round_: int, now: ProgressState, answered: Mapping[tuple[str, str], Work]) -> dict[str, object]:
    """One silo's line: `silo`, `doing` and, while it trains, `step`, `steps`, `loss` and `rate` (tokens a second)."""
    if (name, "evaluate") in answered:
        return {"silo": name, "doing": "done"}
    kind = now.get("kind") if now.get("round") == round_ else None
    if kind == "evaluate":
        return {"silo": name, "doing": "evaluating"}
    if (name, "train") in answered:
        return {"silo": name, "doing": "trained"}
    if kind == "train" and "step" in now:
        rate = now["tokens"] / max(now["seconds"], 1e-9)
        return {"silo": name, "doing": "training", "step": now["step"], "steps": now["steps"], "loss": now["loss"],
                "rate": round(rate)}  # fmt: skip
    return {"silo": name, "doing": "waiting"}


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
