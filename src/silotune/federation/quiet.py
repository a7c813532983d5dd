"""Quiet surroundings: what libraries and workers write to the terminal goes into the run's log."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

from silotune.errors import OutputError
from silotune.federation.events import Event, Watcher


@contextmanager
def quiet(log: Path) -> Iterator[Callable[[Watcher], Watcher]]:
    """Send all that this process and its children write to the terminal to a file, for as long as it lasts.

    At the level of file descriptors, because Ray and native libraries write past Python. Yields a function that
    makes a watcher heard: what it prints goes where it would have gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield lambda watch: _aloud(watch, kept)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, OutputError):  # the log's disk may be full
                stream.flush()
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(target)


def _aloud(watch: Watcher, kept: Sequence[int]) -> Watcher:
    """A watcher whose prints go to the descriptors `kept`, where Python's own streams were the process's."""

    def heard(event: Event) -> None:
        with ExitStack() as stack:
            for name, number, redirect in (("stdout", 1, redirect_stdout), ("stderr", 2, redirect_stderr)):
                if _descriptor(getattr(sys, name)) == number:
                    stream = stack.enter_context(os.fdopen(os.dup(kept[number - 1]), "w", encoding="utf-8"))
                    stack.enter_context(redirect(stream))
            watch(event)

    return heard


def _descriptor(stream: TextIO) -> int | None:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):  # a notebook's stream has none
        return None
