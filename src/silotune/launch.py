"""A run on this machine, from its first message to its report."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from silotune.consortium import membership
from silotune.consortium.folder import Consortium, open_consortium, running
from silotune.errors import DivergedError, FederationError, InputError, Interrupted, OutputError
from silotune.federation import checkpoint, local, result
from silotune.federation import run as run_folder
from silotune.federation.events import Event, RunContext, Watcher
from silotune.federation.quiet import quiet
from silotune.federation.run import RunFolder
from silotune.inference import samples
from silotune.model.adapter import AdapterSpec
from silotune.report import card, page, trackers
from silotune.settings import Recipe
from silotune.silo.worker import Worker

if TYPE_CHECKING:
    from silotune.compare.comparison import Comparison


def launch(recipe: Recipe, old: RunFolder | None, out: Path | None, watch: Watcher) -> RunFolder:
    """Begin a run, or go on with one, and bring it to its end.

    Args:
        recipe: its paths absolute.
        old: the run to go on with.
        out: folder of a new run; named after the recipe and the time if left out.
        watch: called with every `Event`.

    Raises:
        InputError: recipe, text, model or folder cannot be used.
        FederationError: too few silos answered; the rounds before are saved.
        OutputError: the disk is full, say; the rounds before are saved.
        Interrupted: Ctrl-C or SIGTERM; the rounds before are saved.
    """
    if recipe.federation.engine == "deployment":
        return _launch_deployed(recipe, old, out, watch)
    # All that can be wrong with the input is found before a folder is made or an engine started.
    trackers.require(recipe)
    local_silos = local.prepare_silos(recipe)
    spec = result.adapter_spec(recipe)
    folder = old or run_folder.create(recipe, out if out is not None else run_folder.default_folder(recipe))
    with _going_on(folder), run_folder.held(folder), run_folder.scratch(folder) as scratch:
        _tell_beginning(folder, local_silos, recipe, scratch, watch)
        if old is not None:
            _tell_other_threads(folder, local_silos, watch)
        with (
            quiet(folder.log_file) as aloud,
            trackers.tracked(recipe, folder, aloud(watch)) as tracked,
            local.local_run_context(len(local_silos.silos), tracked, scratch) as run_context,
        ):
            checkpoint.require_sound(folder, checkpoint.latest(folder), spec)
            if not _all_rounds_done(folder, recipe):
                _run_engine(recipe, folder, local_silos.showing(scratch), run_context, spec)
            run_context.watch(Event("finishing"))
            finish(recipe, folder, run_context.stop)
    return folder


def _launch_deployed(recipe: Recipe, old: RunFolder | None, out: Path | None, watch: Watcher) -> RunFolder:
    """Begin a run with the members of a consortium, or go on with one."""
    from silotune.federation.server import federate
    from silotune.federation.superlink import activations

    trackers.require(recipe)
    consortium, recipe = _with_members(recipe)
    spec = result.adapter_spec(recipe)
    folder = old or run_folder.create(recipe, out if out is not None else run_folder.default_folder(recipe))
    expected = recipe.federation.silos or len(recipe.federation.members or ()) or recipe.federation.minimum
    with (
        _going_on(folder),
        run_folder.held(folder),
        running(consortium, folder.path),
        quiet(folder.log_file) as aloud,
        trackers.tracked(recipe, folder, aloud(watch)) as tracked,
    ):
        tracked(Event("run", {"path": str(folder.path), "consortium": consortium.settings.name}))
        checkpoint.require_sound(folder, checkpoint.latest(folder), spec)
        run_context = RunContext(expected, fixed=False, watch=tracked, paused=lambda: consortium.paused,
                                 activations=activations(consortium.link),
                                 called=partial(membership.name_of, consortium))  # fmt: skip
        with local.stopping(run_context.stop):
            if not _all_rounds_done(folder, recipe):
                with consortium.link.run(run_context.stop) as grid:
                    federate(grid, recipe, folder, run_context, spec)
            tracked(Event("finishing"))
            finish(recipe, folder, run_context.stop, text_is_here=False)
    return folder


def compare_deployed(run: RunFolder, watch: Watcher) -> "Comparison":
    """Have the silos of a finished run train alone, each where its text lies, and tell their own rows.

    Raises:
        InputError: the run's consortium is not here.
        FederationError: it does not answer, or no silo can be compared.
        Interrupted: Ctrl-C or SIGTERM; what was told is kept.
    """
    from silotune.federation import alone
    from silotune.federation.superlink import activations
    from silotune.report import deployed

    consortium, recipe = _with_members(run.recipe())
    run_context = RunContext(recipe.federation.silos or 1, fixed=False, watch=watch,
                             activations=activations(consortium.link),
                             called=partial(membership.name_of, consortium))  # fmt: skip
    with (
        run_folder.held(run),
        running(consortium, run.path),
        quiet(run.log_file),
        local.stopping(run_context.stop),
        consortium.link.run(run_context.stop) as grid,
    ):
        told, missing = alone.ask(grid, run, run_context)
    return deployed.compare(run, told, missing)


def _with_members(recipe: Recipe) -> tuple[Consortium, Recipe]:
    """The consortium of a recipe, and the recipe with its members and their keys, where it names none itself.

    Raises:
        InputError: there is no consortium, or it has fewer members than a round needs.
    """
    settings = recipe.federation
    if settings.consortium is None:
        raise InputError(
            'federation.engine = "deployment" needs federation.consortium, the folder that `silotune consortium init` '
            "made: give it in the recipe, or with --consortium."
        )
    consortium = open_consortium(Path(settings.consortium))
    if settings.members is None:
        keys = {one.name: one.silo_key for one in membership.read(consortium).members.values()}
        if len(keys) < settings.minimum:
            raise InputError(
                f"{consortium.folder}: {len(keys)} members, and federation.minimum asks for {settings.minimum} in a "
                "round. Invite more: silotune consortium invite"
            )
        settings = settings.model_copy(update={"members": keys})
    return consortium, recipe.model_copy(update={"federation": settings})


@contextmanager
def _going_on(folder: RunFolder) -> Iterator[None]:
    """Have what ends a run too early say what is saved and how to go on.

    Raises:
        OutputError: something could not be written.
    """
    advice = f"Go on with: silotune train --resume {folder.path}"
    try:
        yield
    except DivergedError:  # it would do the same again
        raise
    except (FederationError, Interrupted) as error:
        raise type(error)(f"{error} {advice}") from error
    except OutputError as error:
        raise OutputError(f"{error} {checkpoint.reached(folder).capitalize()}. {advice}") from error
    except OSError as error:
        if not folder.recipe_file.exists():
            raise OutputError(f"{folder.path}: the run's folder is gone, and the run with it. Start again.") from error
        raise OutputError(
            f"{error.filename or folder.path}: cannot be written ({error.strerror or error}); "
            f"{checkpoint.reached(folder)}. Make room, or give the folder back its rights. {advice}"
        ) from error


def _tell_beginning(
    folder: RunFolder, local_silos: local.LocalSilos, recipe: Recipe, scratch: Path, watch: Watcher
) -> None:
    """Say where the run goes, and what there is to know of its rows before anything trains."""
    where = {
        "path": str(folder.path),
        "scratch": str(scratch),
        "workers": local_silos.workers,
        "threads": local_silos.threads,
    }
    watch(Event("run", where))
    for name, leaks in local_silos.leaks.items():
        if leaks.all:
            found = {"exact": len(leaks.exact), "near": len(leaks.near), "dropped": recipe.data.drop_leaks}
            watch(Event("leaks", {"silo": name, **found}))
    for name, files in local_silos.unread.items():
        for file, fields in files.items():
            watch(Event("fields_not_read", {"silo": name, "file": file, "fields": list(fields)}))
    for text in local_silos.remarks:
        watch(Event("remark", {"text": text}))


def finish(
    recipe: Recipe, folder: RunFolder, stop: threading.Event | None = None, *, text_is_here: bool = True
) -> None:
    """Write what comes after the last round: the adapter, its card, samples if the recipe wants them, the report.

    Without the silos' text on this machine (a deployment) there are no samples.

    Raises:
        Interrupted: `stop` was set before all was written.
    """
    saved = checkpoint.latest(folder)
    assert saved is not None
    steps: list[Callable[[], object]] = [lambda: card.write(folder), lambda: page.write(folder)]
    if not folder.finished():
        steps.insert(0, lambda: result.write_adapter(folder, recipe, saved.state.adapter))
    if recipe.report.samples and text_is_here:
        steps.insert(-1, lambda: samples.write(folder))
    for step in steps:
        if stop is not None and stop.is_set():
            raise Interrupted(f"Stopped by the user; {checkpoint.reached(folder)}, the report is not written.")
        step()


def _tell_other_threads(folder: RunFolder, local_silos: local.LocalSilos, watch: Watcher) -> None:
    """Say it when a run goes on with another number of threads: sums round otherwise then."""
    saved = checkpoint.latest(folder)
    before = {profile.threads for profile in saved.profiles.values()} if saved else set()
    if before and before != {local_silos.threads}:
        watch(Event("threads", {"before": sorted(before), "now": local_silos.threads}))


def _all_rounds_done(folder: RunFolder, recipe: Recipe) -> bool:
    saved = checkpoint.latest(folder)
    return saved is not None and saved.state.round >= recipe.training.rounds


def _run_engine(
    recipe: Recipe, folder: RunFolder, local_silos: local.LocalSilos, run_context: RunContext, spec: AdapterSpec
) -> None:
    # Flower and Ray are slow to import: not before they are needed.
    from silotune.federation.server import federate

    serve = partial(federate, recipe=recipe, run=folder, run_context=run_context, spec=spec)
    if recipe.federation.engine == "inline":
        from silotune.federation.inline import run_inline
        from silotune.federation.together import run_together

        if recipe.federation.together > 1:
            run_together(serve, local_silos.silos, recipe.federation.together)
        else:
            run_inline(serve, list(map(Worker, local_silos.silos)))
    else:
        from silotune.federation.simulation import run_simulation

        run_simulation(serve, list(map(Worker, local_silos.silos)), local_silos, run_context)
