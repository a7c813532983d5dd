"""The apps for plain `flwr run`, on Flower's simulation or on a deployment: see `federation/flower_app/`.

The server's settings are Flower's run config: `recipe` and `out` are paths on the server's machine, `resume` goes
on with the run in `out`. `compare`, by itself, is the folder of a finished run: its silos train alone, and each tells
its own row of the comparison. A silo's settings are its own node's configuration.
"""

from pathlib import Path

from flwr.app import Context, UserConfig
from flwr.serverapp import Grid
from rich.console import Console

from silotune import launch
from silotune.errors import InputError
from silotune.federation import alone
from silotune.federation import run as run_folder
from silotune.federation.app import client_app, make_server_app
from silotune.federation.events import Event, RunContext
from silotune.federation.result import adapter_spec
from silotune.federation.run import RunFolder
from silotune.federation.server import federate
from silotune.recipe import load_recipe
from silotune.report import deployed, tables, trackers

__all__ = ["client_app", "server_app"]


def serve(grid: Grid, context: Context) -> None:
    """Run a federation over a grid that Flower provides.

    Raises:
        SilotuneError: in one line, as on silotune's own command line.
    """
    settings = context.run_config
    if settings.get("compare"):
        _compare(grid, settings)
        return
    given, out = str(settings.get("recipe") or ""), str(settings.get("out") or "")
    if not given or not out:
        raise InputError(
            'give the recipe and the run\'s folder, --run-config \'recipe="..." out="..."\', or a finished run, '
            "--run-config 'compare=\"...\"'"
        )
    recipe = load_recipe(Path(given))
    trackers.require(recipe)
    if recipe.federation.together > 1:
        raise InputError(
            f"federation.together = {recipe.federation.together}: silos train in one pass on the inline engine only. "
            "Take it out of the recipe."
        )
    spec = adapter_spec(recipe)
    folder = run_folder.reopen(Path(out), recipe) if settings.get("resume") else run_folder.create(recipe, Path(out))
    with run_folder.held(folder), trackers.tracked(recipe, folder, _tell) as watch:
        run_context = RunContext(recipe.federation.silos or recipe.federation.minimum, fixed=False, watch=watch)
        federate(grid, recipe, folder, run_context, spec)
        if recipe.report.samples:
            _tell(Event("no_samples", {"reason": "report.samples needs the silos' text, which stays with them"}))
        launch.finish(recipe, folder, text_is_here=False)


def _compare(grid: Grid, settings: UserConfig) -> None:
    """Have the silos of a finished run tell what they can do alone, and show what that makes of the run.

    Raises:
        SilotuneError: in one line.
    """
    if settings.get("recipe") or settings.get("out") or settings.get("resume"):
        raise InputError("compare is of a finished run, which has its recipe: leave out recipe, out and resume")
    folder = RunFolder(Path(str(settings["compare"])).resolve())
    recipe = folder.recipe()
    with run_folder.held(folder):
        told, missing = alone.ask(grid, folder, RunContext(recipe.federation.silos or 1, fixed=False, watch=_tell))
        found = deployed.compare(folder, told, missing)
    tables.show_comparison(found, Console(width=160))


def _tell(event: Event) -> None:
    fields = ", ".join(f"{key} {value}" for key, value in event.fields.items())
    print(f"silotune: {event.kind}: {fields}", flush=True)  # noqa: T201 - Flower keeps a ServerApp's output as its log


server_app = make_server_app(serve)
