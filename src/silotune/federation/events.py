"""What happens in a run, for whoever watches: the live table, `--json`, a caller of the Python API."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Fields = Mapping[str, Any]
"""What an event tells; which keys there are depends on its kind."""


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Kinds: `run`, `leaks`, `fields_not_read`, `remark`, `start`, `message` (a line of the ledger), `joined`,
    `round_start`, `asked`, `asked_again`, `answered`, `left_out`, `round` (it is saved), `tracker_failed`, `finishing`.
    """

    kind: str
    fields: Fields = field(default_factory=dict)


Watcher = Callable[[Event], None]


@dataclass(frozen=True)
class RunContext:
    """The circumstances that a federation runs in."""

    expected: int
    """Silos to wait for before the first round."""
    fixed: bool
    """Whether nobody but the expected can ever join (a simulation)."""
    watch: Watcher = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)
    """Set to end the run after what is being done."""
    scratch: Path | None = None
    """Folder of `progress`, on one machine only."""
    paused: Callable[[], bool] = lambda: False
    """Whether no round is to begin for now."""
    called: Callable[[int], str] = lambda _: ""
    """Whose node that is, for one that says nothing itself; empty where nobody knows."""
    activations: Callable[[], Mapping[int, str]] | None = None
    """For each node that may come, a mark that changes when it begins anew, for a message from before is lost then;
    empty while it is away. None: nodes begin once. Raises FederationError where that is not known."""
