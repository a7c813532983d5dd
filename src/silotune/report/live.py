"""What the screen shows while a run goes on: one live table, plain lines where there is no terminal, or JSON."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from silotune.data.read.files import printable
from silotune.federation.events import Event, Fields
from silotune.federation.run import RunFolder
from silotune.privacy.ledger import LedgerLine, read_lines
from silotune.report.figures import human_bytes
from silotune.report.traffic import Traffic
from silotune.silo.progress import ProgressState, read_progress


class JsonLines:
    """Every event as one line of JSON."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream

    def __call__(self, event: Event) -> None:
        """Write one event."""
        fields = {key: value for key, value in event.fields.items() if key != "scratch"}
        self._stream.write(json.dumps({"event": event.kind, **fields}, ensure_ascii=False) + "\n")
        self._stream.flush()


@dataclass
class _Silo:
    status: str = "waiting"
    loss: float | None = None
    held_out: float | None = None
    rate: float | None = None


@dataclass
class _State:
    scratch: Path | None = None
    round: int = 0
    rounds: int = 0
    done: int = 0
    resumed: int = 0
    began: float = field(default_factory=time.monotonic)
    first_round: float | None = None
    note: str = "starting"
    silos: dict[str, _Silo] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    remarks: list[str] = field(default_factory=list)


REMARKS = ("leaks", "fields_not_read", "remark", "threads", "asked_again", "left_out", "tracker_failed")
"""Events that stay in sight below the table."""


def lines_for(event: Event) -> list[str]:
    """What to say of an event where there is no terminal; nothing for most."""
    fields = event.fields
    if event.kind == "run":
        if "consortium" in fields:
            return [f"run folder {fields['path']} (consortium {printable(fields['consortium'])})"]
        return [f"run folder {fields['path']} ({fields['workers']} workers, {fields['threads']} threads each)"]
    if event.kind == "leaks":
        what = "left out of the test" if fields["dropped"] else "see silotune check"
        return [
            f"silo {printable(fields['silo'])}: {fields['exact']} test rows also stand in training text, "
            f"{fields['near']} more nearly ({what})"
        ]
    if event.kind == "fields_not_read":
        names = ", ".join(printable(name)[:64] for name in fields["fields"])
        return [f"silo {printable(fields['silo'])}, {printable(fields['file'])}: fields that are not read: {names}"]
    if event.kind == "remark":
        return [printable(fields["text"])]
    if event.kind == "threads":
        before = " or ".join(map(str, fields["before"]))
        return [
            f"the run began with {before} threads per silo and goes on with {fields['now']}: the last bits will differ "
            "from those of a run that was not interrupted"
        ]
    if event.kind == "joined":
        name, rows, tested = printable(fields["silo"]), fields["train_rows"], fields["test_rows"]
        cut = f", {fields['cut']} rows shortened to fit" if fields["cut"] else ""
        key = f", base {fields['base']}, key {fields['key']}" if fields["key"] else ""
        return [f"silo {name}: {rows} training rows, {tested} held out{cut}{key}"]
    if event.kind == "answered":
        return [
            f"round {fields['round']}: {printable(fields['silo'])} trained {fields['steps']} steps, "
            f"loss {fields['loss']:.3f}, {fields['tokens'] / max(fields['seconds'], 1e-9):.0f} tokens/s"
        ]
    if event.kind == "asked_again":
        return [f"round {fields['round']}: {printable(fields['silo'])} has come back and is asked again"]
    if event.kind == "left_out":
        return [f"left out: {printable(fields['silo'])}: {printable(fields['reason'])}"]
    if event.kind == "tracker_failed":
        return [f"{fields['tracker']} is not written any more: {printable(fields['reason'])}; the run goes on"]
    if event.kind == "round":
        held_out = f"held-out loss {fields['evaluation']['loss']:.3f}" if fields["evaluation"] else "not evaluated"
        error = f", e_agg {fields['e_agg']:.3f}" if fields["e_agg"] is not None else ""
        name = f"round {fields['round']}" if fields["round"] else "base model"
        return [f"{name}: {held_out}{error}, {fields['seconds']:.1f} s"]
    return []


class LiveTable:
    """A table that is redrawn while a run goes on; lines only, where the console is no terminal."""

    def __init__(self, console: Console) -> None:
        """Show on `console`."""
        self._console = console
        self._state = _State()
        self._live: Live | None = None
        if console.is_terminal:
            # What others write to the process's streams meanwhile belongs into the log, not above the table.
            self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=False,
                              redirect_stdout=False, redirect_stderr=False)  # fmt: skip

    def __enter__(self) -> "LiveTable":
        """Begin to draw."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Draw a last time and leave the table on the screen."""
        self._state.scratch = None
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take an event into account."""
        handler: Callable[[Fields], None] | None = getattr(self, f"_on_{event.kind}", None)
        if handler:
            handler(dict(event.fields))
        if event.kind in REMARKS:
            self._state.remarks += lines_for(event)
        if not self._live:
            for line in lines_for(event):
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _on_run(self, fields: Fields) -> None:
        self._state.scratch = Path(fields["scratch"]) if "scratch" in fields else None
        self._state.note = "loading the base model at the silos"
        for line in read_lines(RunFolder(Path(fields["path"])).ledger_file):  # of a run that is gone on with
            self._state.traffic.add(line)

    def _on_message(self, fields: LedgerLine) -> None:
        self._state.traffic.add(fields)

    def _on_start(self, fields: Fields) -> None:
        self._state.rounds = fields["rounds"]
        self._state.round = self._state.done = self._state.resumed = fields["done"]

    def _on_joined(self, fields: Fields) -> None:
        self._state.silos[fields["silo"]] = _Silo("joined")

    def _on_round_start(self, fields: Fields) -> None:
        state = self._state
        state.round, state.note = fields["round"], ""
        state.first_round = state.first_round or time.monotonic()
        for name, silo in state.silos.items():
            silo.status = "asked" if name in fields["cohort"] else "not asked"

    def _on_answered(self, fields: Fields) -> None:
        silo = self._state.silos.setdefault(fields["silo"], _Silo())
        silo.status, silo.loss = "done", fields["loss"]
        silo.rate = fields["tokens"] / max(fields["seconds"], 1e-9)

    def _on_left_out(self, fields: Fields) -> None:
        self._state.silos.setdefault(str(fields["silo"]), _Silo()).status = "left out"

    def _on_round(self, fields: Fields) -> None:
        self._state.done = fields["round"]
        loss = f"{fields['evaluation']['loss']:.3f}" if fields["evaluation"] else "-"
        self._state.note = f"held-out loss {loss}" + (
            f", e_agg {fields['e_agg']:.3f}" if fields["e_agg"] is not None else ""
        )

    def _on_finishing(self, _: Fields) -> None:
        self._state.note = "writing adapter and report"

    def _draw(self) -> Group:
        state = self._state
        progress = read_progress(state.scratch) if state.scratch else {}
        table = Table(expand=False)
        for name, justify in (("silo", "left"), ("step", "right"), ("tokens/s", "right"), ("loss", "right"),
                              ("down", "right"), ("up", "right"), ("", "left")):  # fmt: skip
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for name, silo in sorted(state.silos.items()):
            self._row(table, name, silo, progress.get(name, {}))
        title = (
            f"round {state.round}/{state.rounds}  {_clock(time.monotonic() - state.began)}{self._left()}  {state.note}"
        )
        return Group(Text(title, style="bold"), table, *(Text(line, style="red") for line in state.remarks[-5:]))

    def _row(self, table: Table, name: str, silo: _Silo, now: ProgressState) -> None:
        step, rate, loss, status = "", silo.rate, silo.loss, silo.status
        if now.get("round") == self._state.round and now.get("kind") == "train" and status == "asked":
            step, loss, status = f"{now['step']}/{now['steps']}", now["loss"], "training"
            rate = now["tokens"] / max(now["seconds"], 1e-9)
        speed, shown_loss = f"{rate:.0f}" if rate else "", f"{loss:.3f}" if loss is not None else ""
        down, up = human_bytes(self._state.traffic.down(name)), human_bytes(self._state.traffic.up(name))
        table.add_row(Text(printable(name)), step, speed, shown_loss, down, up, status)

    def _left(self) -> str:
        state = self._state
        finished = state.done - state.resumed
        if state.first_round is None or finished < 1:
            return ""
        each = (time.monotonic() - state.first_round) / finished
        return f", about {_clock(each * (state.rounds - state.done))} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
