"""Processes that are kept running: started, watched, and started again when they end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

Tell = Callable[[str], None]

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until a part that has ended is started again: at first, and at most."""
SOUND = 60.0
"""Seconds after which a part is taken to run well."""
LAST_WORDS = 20.0
"""Seconds that a part has to end when it is asked to."""


@dataclass
class Part:
    """A process that is kept running."""

    name: str
    command: list[str]
    folder: Path
    """Where it works: its user's own."""
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    began: float = 0.0
    longest: float = LONGEST_PAUSE
    """Seconds until it is started again, at most."""
    pause: float = FIRST_PAUSE
    """Until it is started again, should it end soon."""
    again: float = field(default=0.0)
    """When to start it, on the monotonic clock."""

    def look(self, tell: Tell) -> None:
        """Start it if it is time, and take note of its end."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.again:
                self.began = now
                self.process = subprocess.Popen(
                    self.command, cwd=self.folder, env=self.environment, start_new_session=True, umask=0o077,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )  # fmt: skip
                threading.Thread(target=_shown, args=(self.process,), daemon=True).start()
            return
        code = self.process.poll()
        if code is None:
            return
        self.end()
        pause = FIRST_PAUSE if now - self.began > SOUND else self.pause
        self.process, self.again, self.pause = None, now + pause, min(2 * pause, self.longest)
        tell(f"the {self.name} has ended (code {code}), and is started again in {pause:g} s")

    def end(self) -> None:
        """End it, and all that it started."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LAST_WORDS)
        with suppress(ProcessLookupError):  # what it started may have stayed
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _shown(process: "subprocess.Popen[bytes]") -> None:
    """Copy what a part says: this process's own streams may be a terminal, and are not for other users to have."""
    assert process.stdout is not None
    for line in process.stdout:
        with suppress(OSError, ValueError):
            sys.stderr.write(line.decode("utf-8", "replace"))
            sys.stderr.flush()


def keep(parts: Sequence[Part], stop: threading.Event, tell: Tell, look: Callable[[], None] = lambda: None) -> None:
    """Keep parts running until `stop` is set; the last of them is ended first.

    Args:
        parts: in the order in which they are started.
        stop: looked at five times a second.
        tell: is told when a part has ended.
        look: called as often.
    """
    try:
        while not stop.wait(0.2):
            look()
            for part in parts:
                part.look(tell)
    finally:
        for part in reversed(parts):
            part.end()


def program(*arguments: object) -> list[str]:
    """A command of silotune's, with this very Python."""
    # -P: no module is looked for in the folder where it starts.
    return [sys.executable, "-P", "-m", "silotune.cli", *map(str, arguments)]
