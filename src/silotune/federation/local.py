"""What the engines on one machine share: the silos' configurations, workers and threads, and how a run is stopped."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from silotune.data.read.content import stamp
from silotune.data.read.files import printable
from silotune.data.silos import leaks
from silotune.data.silos.corpus import leaks_of, load_corpus, options_of, reading_of, runs_among, silos_of
from silotune.data.silos.leaks import Leaks
from silotune.data.silos.sources import SiloConfig, SiloFiles
from silotune.data.tokenize.template_check import oddities
from silotune.errors import RecipeError
from silotune.federation.events import RunContext, Watcher
from silotune.model.base import cores, load_tokenizer, locate, place
from silotune.settings import Recipe
from silotune.silo.progress import ask_to_stop

LONGEST_NAME = 64
MEMORY = "memory"
"""The folder below a run's where the silos of a simulation remember."""


@dataclass(frozen=True)
class LocalSilos:
    """The silos of a simulation and how they share the machine."""

    silos: tuple[SiloConfig, ...]
    """Heaviest first: the order in which an engine begins them."""
    workers: int
    threads: int
    leaks: Mapping[str, Leaks]
    """For each silo, the test rows that also appear in any silo's training text."""
    unread: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """For each silo and file name, the fields that are not read."""
    remarks: Sequence[str] = ()
    """What is odd about the base's chat template, and what was passed over."""

    def showing(self, scratch: Path) -> "LocalSilos":
        """Return these silos, showing their progress in a folder and remembering beside it."""
        memory = scratch.parent / MEMORY
        return replace(self, silos=tuple(replace(silo, scratch=scratch, memory=memory) for silo in self.silos))


def prepare_silos(recipe: Recipe) -> LocalSilos:
    """Find the silos, read and tokenise every row of theirs, and divide the cores.

    Raises:
        InputError: text, settings or device that cannot be used; nothing has been trained.
    """
    place(recipe.model.device, recipe.model.dtype)
    local_silos = local_silos_of(recipe)
    require_enough(recipe, [silo.files.name for silo in local_silos.silos])
    tokenizer = load_tokenizer(locate(recipe.model.base))
    unread: dict[str, Mapping[str, Sequence[str]]] = {}
    for silo in local_silos.silos:
        corpus = load_corpus(silo, tokenizer, recipe.data.max_length, recipe.seed, options_of(recipe))
        found = {**corpus.test.store.described.unused, **corpus.train.store.described.unused}
        if found:
            unread[silo.files.name] = found
    runs = [f"{name} is the folder of a run and no silo: it is left out" for name in runs_among(recipe.data)]
    return replace(local_silos, unread=unread, remarks=(*runs, *oddities(tokenizer, recipe.data.system)))


def require_enough(recipe: Recipe, names: Sequence[str]) -> None:
    """Refuse silos that cannot make a round.

    Raises:
        RecipeError: too few, or a name that cannot be shown.
    """
    if len(names) < recipe.federation.minimum:
        raise RecipeError(
            f"federation.minimum: asks for {recipe.federation.minimum} silos per round, data.silos has {len(names)} "
            f"({', '.join(sorted(map(printable, names)))})."
        )
    for name in names:
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise RecipeError(
                f"data.silos: {printable(name)!r} cannot be a silo's name: it has more than {LONGEST_NAME} characters, "
                "or some that cannot be shown. Rename its folder, or list the silos with [[data.silos]]."
            )


def local_silos_of(recipe: Recipe) -> LocalSilos:
    """The silos that a recipe names on this machine, and their share of it; what was read before is not read again.

    Raises:
        DataError: there are none, or two of one name.
    """
    found = silos_of(recipe.data, recipe.seed)
    inline = recipe.federation.engine == "inline"
    workers = 1 if inline else min(recipe.federation.workers or cores(), len(found))
    threads = recipe.federation.threads or max(1, cores() // workers)
    reading = reading_of(recipe.data)
    leaked = leaks_of(found, reading, recipe.data.holdout, recipe.seed)
    silos = tuple(
        SiloConfig(
            files=files,
            base=recipe.model.base,
            holdout=recipe.data.holdout,
            reading=reading,
            leaks=leaked,
            drop_leaks=recipe.data.drop_leaks,
            device=recipe.model.device,
            dtype=recipe.model.dtype,
            keep=recipe.model.keep,
            keep_mib=recipe.model.keep_mib,
            threads=threads,
        )
        for files in sorted(found, key=_size, reverse=True)
    )
    return LocalSilos(silos, workers, threads, {files.name: leaks.read(leaked, files.name) for files in found})


def _size(files: SiloFiles) -> tuple[int, str]:
    return sum(sum(stamp(source)[:1]) for source in files.train), files.name


@contextmanager
def local_run_context(silos: int, watch: Watcher, scratch: Path) -> Iterator[RunContext]:
    """The context of a run on this machine, which Ctrl-C and SIGTERM end in order."""
    run_context = RunContext(silos, fixed=True, watch=watch, stop=threading.Event(), scratch=scratch)
    with stopping(run_context.stop, lambda: ask_to_stop(scratch)):
        yield run_context


@contextmanager
def stopping(wanted: threading.Event, also: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM set an event, and do something more; a second Ctrl-C ends the process at once."""

    def stop(number: int, _: FrameType | None) -> None:
        if wanted.is_set() and number == signal.SIGINT:
            os._exit(130)  # Ray's processes end with this one
        wanted.set()
        also()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
