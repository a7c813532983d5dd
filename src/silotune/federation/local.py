"""What the engines on one machine share: the silos' configurations, workers and threads, and quiet surroundings."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from silotune.data.corpus import read_split
from silotune.data.silos import SiloConfig, SiloFiles, find_silos
from silotune.errors import RecipeError
from silotune.federation.events import Venue, Watcher
from silotune.federation.progress import ask_to_stop
from silotune.model.base import LOCAL, place, public_name
from silotune.settings import Recipe


@dataclass(frozen=True)
class Crew:
    """The silos of a simulation and how they share the machine."""

    silos: tuple[SiloConfig, ...]
    """Heaviest first: the order in which an engine begins them."""
    workers: int
    threads: int

    def showing(self, scratch: Path) -> "Crew":
        """The same crew, showing its progress in a folder."""
        return replace(self, silos=tuple(replace(silo, scratch=scratch) for silo in self.silos))


def muster(recipe: Recipe) -> Crew:
    """Find the silos, read every row of theirs once, and divide the cores.

    Raises:
        InputError: text, settings or device that cannot be used; nothing has been trained.
    """
    crew = crew_of(recipe)
    if len(crew.silos) < recipe.federation.minimum:
        raise RecipeError(
            f"federation.minimum: asks for {recipe.federation.minimum} silos a round, data.silos has {len(crew.silos)} "
            f"({', '.join(sorted(silo.files.name for silo in crew.silos))})."
        )
    for silo in crew.silos:
        read_split(silo.files, recipe.data.holdout, recipe.seed)
    place(recipe.model.device, recipe.model.dtype)
    return crew


def crew_of(recipe: Recipe) -> Crew:
    """The silos that a recipe names on this machine, and their share of it; their rows are not read.

    Raises:
        DataError: there are none, or two of one name.
    """
    found = find_silos(recipe.data.silos)
    cores = os.cpu_count() or 1
    inline = recipe.federation.engine == "inline"
    workers = 1 if inline else min(recipe.federation.workers or cores, len(found))
    threads = recipe.federation.threads or max(1, cores // workers)
    base = recipe.model.base if public_name(recipe.model.base) == LOCAL else None
    silos = tuple(
        SiloConfig(files, base, recipe.data.holdout, recipe.model.device, recipe.model.dtype, threads)
        for files in sorted(found, key=_size, reverse=True)
    )
    return Crew(silos, workers, threads)


def _size(files: SiloFiles) -> tuple[int, str]:
    return files.train.stat().st_size, files.name


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send all that this process and its children write to the terminal to a file, for as long as it lasts.

    At the level of file descriptors, because Ray and native libraries write past Python. Who wants to be seen
    meanwhile writes to a duplicate of the descriptor made before.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(target)


@contextmanager
def local_venue(silos: int, watch: Watcher, scratch: Path) -> Iterator[Venue]:
    """A venue on this machine that Ctrl-C and SIGTERM bring to an orderly end: a second Ctrl-C ends it at once."""
    venue = Venue(silos, fixed=True, watch=watch, stop=threading.Event(), scratch=scratch)

    def stop(number: int, _: FrameType | None) -> None:
        if venue.stop.is_set() and number == signal.SIGINT:
            os._exit(130)  # Ray's processes end with this one
        venue.stop.set()
        ask_to_stop(scratch)

    if threading.current_thread() is not threading.main_thread():
        yield venue
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield venue
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
