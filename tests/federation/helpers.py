"""Runs of tiny federations, and a ClientApp that misbehaves on purpose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from silotune.federation import app, local
from silotune.federation import run as run_folder
from silotune.federation.events import Event, Venue
from silotune.federation.inline import run_inline
from silotune.federation.result import adapter_spec
from silotune.federation.run import RunFolder
from silotune.federation.server import federate
from silotune.settings import Recipe

Change = Callable[[Message, Message, str], Message | None]
"""(request, honest reply, silo) -> another reply, or None for the honest one."""


def client_app(change: Change = lambda *_: None) -> ClientApp:
    """The real ClientApp, whose replies `change` may replace."""
    made = ClientApp()

    def register(kind: str, handler: Callable[[Message, Context], Message]) -> None:
        def handle(message: Message, context: Context) -> Message:
            from silotune.federation.client import silo_of

            reply = handler(message, context)
            return change(message, reply, silo_of(context.node_config).files.name) or reply

        {"query": made.query, "train": made.train, "evaluate": made.evaluate}[kind]()(handle)

    register("query", app.hello)
    register("train", app.train)
    register("evaluate", app.evaluate)
    return made


def run(
    recipe: Recipe, out: Path, client: ClientApp | None = None, stop_after: str | None = None, watch: Any = None
) -> tuple[RunFolder, list[Event]]:
    """Run a recipe inline, in this process; returns the folder and what happened."""
    events: list[Event] = []
    folder = run_folder.reopen(out, recipe) if out.exists() else run_folder.create(recipe, out)
    crew = local.muster(recipe)

    def note(event: Event) -> None:
        events.append(event)
        if watch:
            watch(event)
        if stop_after and event.kind == stop_after:
            venue.stop.set()

    venue = Venue(len(crew.silos), fixed=True, watch=note)
    spec = adapter_spec(recipe)
    run_inline(
        lambda grid: (federate(grid, recipe, folder, venue, spec), None)[1], client or app.client_app, crew.silos
    )
    return folder, events


def adapter_bytes(folder: RunFolder) -> bytes:
    """The last saved state's tensors."""
    last = sorted(folder.states.glob("round-*"))[-1]
    return (last / "state.safetensors").read_bytes()
