"""Progress of a silo's work and the wish to stop, through a folder on one machine.

Flower has no way to tell how far a message is. A simulation's workers write a small file each into a folder that
the screen reads; a file `stop` there asks them to end at their next step, and one named after a silo's work asks
for the end of that work alone. Nothing of it crosses a network: a deployed silo has no such folder.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from silotune import atomic
from silotune.errors import Interrupted, SilotuneError

STOP = "stop"


@dataclass(frozen=True)
class Progress:
    """Called after each step of a silo's work."""

    folder: Path | None
    silo: str
    round: int
    kind: str

    def __call__(self, **figures: float) -> None:
        """Show how far the work is.

        Raises:
            Interrupted: the run stops.
            SilotuneError: this work has been called off.
        """
        if self.folder is None:
            return
        self.still_wanted()
        state = {"silo": self.silo, "round": self.round, "kind": self.kind, **figures}
        with contextlib.suppress(OSError):  # a full disk is no reason not to train
            atomic.write_text(self.folder / f"{_short(self.silo)}.json", json.dumps(state), durable=False)

    def still_wanted(self) -> None:
        """Go on only if somebody waits for the result.

        Raises:
            Interrupted: the run stops.
            SilotuneError: this work has been called off.
        """
        if self.folder is None:
            return
        require_going(self.folder)
        if _called_off(self.folder, self.silo, self.round, self.kind).exists():
            raise SilotuneError("called off: it was not done in time")


class ProgressState(TypedDict, total=False):
    """What a silo has shown of its work: its figures only while it trains."""

    silo: str
    round: int
    kind: str
    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float


def read_progress(folder: Path) -> dict[str, ProgressState]:
    """The last figures of every silo that has shown any, by name."""
    states: dict[str, ProgressState] = {}
    for path in folder.glob("*.json"):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # being replaced, or gone
        states[str(state["silo"])] = state
    return states


def require_going(folder: Path) -> None:
    """Raise `Interrupted` if all work that belongs to a folder has been asked to end."""
    if (folder / STOP).exists():
        raise Interrupted("stopped by the user")


def call_off(folder: Path, silo: str, round_: int, kind: str) -> None:
    """Ask one piece of work to end at its next step, or not to begin; on a disk that takes nothing it goes on."""
    with contextlib.suppress(OSError):
        _called_off(folder, silo, round_, kind).touch()


def _called_off(folder: Path, silo: str, round_: int, kind: str) -> Path:
    return folder / f"off-{kind}-{round_}-{_short(silo)}"


def _short(silo: str) -> str:
    """A silo's name as part of a file's name, whatever characters it has."""
    return hashlib.sha256(silo.encode()).hexdigest()[:24]


def ask_to_stop(folder: Path) -> None:
    """Ask all work that shows its progress in this folder to end at its next step, if the disk takes the wish."""
    with contextlib.suppress(OSError):
        (folder / STOP).touch()
