"""The apps for plain `flwr run`, on Flower's simulation or on a deployment: see `federation/flower_app/`.

The server's settings are Flower's run config: `recipe` and `out` are paths on the server's machine, `resume` goes
on with the run in `out`. A silo's settings are its own node's configuration.
"""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from silotune import api
from silotune.errors import InputError
from silotune.federation import run as run_folder
from silotune.federation.app import client_app, make_server_app
from silotune.federation.events import Event, Venue
from silotune.federation.result import adapter_spec
from silotune.federation.server import federate
from silotune.recipe import load_recipe
from silotune.report import trackers

__all__ = ["client_app", "server_app"]


def serve(grid: Grid, context: Context) -> None:
    """Run a federation over a grid that Flower provides.

    Raises:
        SilotuneError: in one line, as on silotune's own command line.
    """
    settings = context.run_config
    given, out = str(settings.get("recipe") or ""), str(settings.get("out") or "")
    if not given or not out:
        raise InputError('give the recipe and the run\'s folder: --run-config \'recipe="..." out="..."\'')
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
        venue = Venue(recipe.federation.silos or recipe.federation.minimum, fixed=False, watch=watch)
        federate(grid, recipe, folder, venue, spec)
        if recipe.report.samples:
            _tell(Event("no_samples", {"reason": "report.samples needs the silos' text, which stays with them"}))
        api.finish(recipe, folder, text_is_here=False)


def _tell(event: Event) -> None:
    fields = ", ".join(f"{key} {value}" for key, value in event.fields.items())
    print(f"silotune: {event.kind}: {fields}", flush=True)  # noqa: T201 - Flower keeps a ServerApp's output as its log


server_app = make_server_app(serve)
