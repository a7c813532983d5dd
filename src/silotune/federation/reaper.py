"""Ends what a simulation started, even after the simulation itself was killed with SIGKILL.

Ray's agents outlive a driver that was killed. So a small process of its own notes the processes of the run's Ray
while it goes on, and when the run is gone (its end of a pipe is closed, by `reaped` or by the kernel) ends those
that are left and removes the run's temporary folders.

Which processes are Ray's is told by the folder of its session, which no other run has: Ray names it in the options
of the processes that it starts first, and the others are below those. Whatever else the user's process has started,
before or meanwhile, is left alone.
"""

import select
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

INTERVAL = 1.0
"""Seconds between two looks at the run's processes."""
PATIENCE = 10.0
"""Seconds for them to be gone."""


@contextmanager
def reaped(ray_folder: Path, *folders: Path) -> Iterator[None]:
    """See to it that the Ray of `ray_folder`, that folder and `folders` end with the block or with this process."""
    watcher = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(ray_folder), *map(str, folders)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        assert watcher.stdin is not None
        watcher.stdin.close()
        watcher.wait()


def rays(candidates: Iterable[psutil.Process], ray_folder: Path) -> set[psutil.Process]:
    """Those of some processes that belong to the Ray of a folder, and all that is below them."""
    found: set[psutil.Process] = set()
    for process in candidates:
        try:
            if process not in found and _names(process.cmdline(), str(ray_folder)):
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue  # gone meanwhile, or another user's
    return found


def _names(arguments: list[str], folder: str) -> bool:
    """Whether an option is this folder or lies in it, as in Ray's `--session-dir=FOLDER/session_...`."""
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith("--")]
    return any(value == folder or value.startswith(f"{folder}/") for value in values)


def end_workers(ray_folder: Path) -> None:
    """End the processes that answer for silos; Ray starts others in their place."""
    for process in rays(psutil.Process().children(recursive=True), ray_folder):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ClientAppActor"):
                process.kill()
        except psutil.Error:
            continue


def end_all(ray_folder: Path) -> None:
    """End every process of this one's Ray, and wait until they are gone."""
    found = rays(psutil.Process().children(recursive=True), ray_folder)
    for process in found:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(found, timeout=PATIENCE)


def watch(ray_folder: Path) -> None:
    """Note the processes of the parent's Ray until standard input ends, then end those that are left."""
    parent = psutil.Process().parent()
    noted: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        try:
            noted |= rays(parent.children(recursive=True) if parent else [], ray_folder)
        except psutil.NoSuchProcess:
            break
    noted |= rays(psutil.process_iter(), ray_folder)  # what came since the last look has lost its parent by now
    for process in noted:
        try:
            process.kill()  # psutil compares start times: a number that was given away again is not killed
        except psutil.Error:
            continue
    psutil.wait_procs(noted, timeout=PATIENCE)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    for folder in sys.argv[1:]:
        shutil.rmtree(folder, ignore_errors=True)
