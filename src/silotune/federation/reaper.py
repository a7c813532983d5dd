"""Ends what a simulation started, even after the simulation itself was killed with SIGKILL.

Ray's agents outlive a driver that was killed. So a small process of its own notes all descendants of the run while
it goes on, and when the run is gone (its end of a pipe is closed, by `reaped` or by the kernel) ends those that
are left and removes the run's temporary folders.
"""

import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL = 1.0
"""Seconds between two looks at the run's descendants."""
PATIENCE = 10.0
"""Seconds for them to be gone."""


@contextmanager
def reaped(*folders: Path) -> Iterator[None]:
    """See to it that all processes started inside, and `folders`, end with it or with this process."""
    watcher = subprocess.Popen(
        [sys.executable, str(Path(__file__)), *map(str, folders)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        assert watcher.stdin is not None
        watcher.stdin.close()
        watcher.wait()


def watch() -> None:
    """Note the parent's descendants until standard input ends, then end those that are left."""
    import psutil

    own = psutil.Process()
    parent = own.parent()
    noted: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        try:
            noted.update(parent.children(recursive=True) if parent else [])
        except psutil.NoSuchProcess:
            break
    noted.discard(own)
    for process in noted:
        try:
            process.kill()  # psutil compares start times: a number that was given away again is not killed
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(noted, timeout=PATIENCE)


if __name__ == "__main__":
    watch()
    for folder in sys.argv[1:]:
        shutil.rmtree(folder, ignore_errors=True)
