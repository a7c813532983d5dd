"""Progress of a silo's work and the wish to stop, through a folder on one machine.

Flower has no way to tell how far a message is. A simulation's workers write a small file each into a folder that
the screen reads; a file `stop` there asks them to end at their next step. Nothing of it crosses a network: a
deployed silo has no such folder.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from silotune.errors import Interrupted

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
            Interrupted: the user asked to stop.
        """
        if self.folder is None:
            return
        if (self.folder / STOP).exists():
            raise Interrupted("stopped by the user")
        state = {"silo": self.silo, "round": self.round, "kind": self.kind, **figures}
        unfinished = self.folder / f".{os.getpid()}"
        unfinished.write_text(json.dumps(state), encoding="utf-8")
        unfinished.replace(self.folder / f"{self.silo}.json")


def read_progress(folder: Path) -> dict[str, dict[str, float]]:
    """The last figures of every silo that has shown any: by name, with `round`, `step`, `tokens` and so on."""
    states = {}
    for path in folder.glob("*.json"):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # being replaced, or gone
        states[str(state["silo"])] = state
    return states


def ask_to_stop(folder: Path) -> None:
    """Ask all work that shows its progress in this folder to end at its next step."""
    (folder / STOP).touch()
