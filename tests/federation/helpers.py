"""Runs of tiny federations, and a ClientApp that misbehaves on purpose."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from silotune.data.silos.sources import SiloConfig
from silotune.federation import app, local
from silotune.federation import run as run_folder
from silotune.federation.events import Event, RunContext
from silotune.federation.inline import InlineGrid
from silotune.federation.result import adapter_spec
from silotune.federation.run import RunFolder
from silotune.federation.server import federate
from silotune.federation.together import run_together
from silotune.settings import Recipe
from silotune.silo.worker import Worker
from silotune.wire.envelope import Kind

Change = Callable[[Message, Message, str], Message | None]
"""(request, honest reply, silo) -> another reply, or None for the honest one."""


ClientOf = Callable[[Sequence[Worker]], ClientApp]
"""A ClientApp for workers."""


def client_app(change: Change = lambda *_: None) -> ClientOf:
    """The real ClientApp, whose replies `change` may replace."""

    def made(workers: Sequence[Worker]) -> ClientApp:
        def handle(message: Message, context: Context, kind: Kind) -> Message:
            reply = app.handle(message, context, kind, workers)
            return change(message, reply, workers[context.node_config[app.PARTITION]].silo.files.name) or reply

        return app.registered(lambda kind: functools.partial(handle, kind=kind))

    return made


def grid_of(client: ClientOf, silos: Sequence[SiloConfig]) -> InlineGrid:
    """An inline grid of these silos."""
    return InlineGrid(client(list(map(Worker, silos))), len(silos))


def serve_inline(go: Callable[[Grid], object], client: ClientOf, silos: Sequence[SiloConfig]) -> None:
    """Run a ServerApp over a grid of these silos."""
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    app.make_server_app(lambda grid, _: go(grid))(grid_of(client, silos), context)


class Network(Grid):
    """A grid whose nodes come and go and are slow as a test says; an inline one answers for them."""

    def __init__(self, client: ClientOf, silos: Any) -> None:
        self.inner = grid_of(client, silos)
        self.here = set(self.inner.get_node_ids())
        self.slow: Callable[[Message], bool] = lambda _: False
        """Whether a message is not answered yet."""
        self.as_asked: dict[int, int] = {}
        """Nodes that are another node's silo, started again."""
        self.sent: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return sorted(self.here)

    def push_messages(self, messages: Any) -> list[str]:
        made = list(messages)
        self.sent += made
        for message in made:
            node = message.metadata.dst_node_id
            if node in self.as_asked:
                self.inner._contexts[node] = self.inner._contexts[self.as_asked[node]]
        return list(self.inner.push_messages(made))

    def pull_messages(self, message_ids: Any) -> list[Message]:
        ready = [i for i in message_ids if i in self.inner._pending and not self.slow(self.inner._pending[i])]
        return [reply for identifier in ready for reply in self.inner.pull_messages([identifier])]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        raise NotImplementedError

    set_run = run = create_message = send_and_receive


def serve(
    grid: Network, recipe: Recipe, out: Path, expected: int, watch: Any = lambda _: None, **circumstances: Any
) -> RunFolder:
    """Run a federation as on the members' machines: over a grid on which nodes come and go."""
    folder = run_folder.reopen(out, recipe) if out.exists() else run_folder.create(recipe, out)
    run_context = RunContext(expected, fixed=False, watch=watch, **circumstances)
    federate(grid, recipe, folder, run_context, adapter_spec(recipe))
    return folder


def run(
    recipe: Recipe, out: Path, client: ClientOf | None = None, stop_after: str | None = None, watch: Any = None
) -> tuple[RunFolder, list[Event]]:
    """Run a recipe inline, in this process; returns the folder and what happened."""
    events: list[Event] = []
    folder = run_folder.reopen(out, recipe) if out.exists() else run_folder.create(recipe, out)
    local_silos = local.prepare_silos(recipe)

    def note(event: Event) -> None:
        events.append(event)
        if watch:
            watch(event)
        if stop_after and event.kind == stop_after:
            run_context.stop.set()

    run_context = RunContext(len(local_silos.silos), fixed=True, watch=note)
    spec = adapter_spec(recipe)
    silos = [replace(silo, memory=folder.path / "memory") for silo in local_silos.silos]

    def go(grid: Grid) -> None:
        federate(grid, recipe, folder, run_context, spec)

    if recipe.federation.together > 1:
        assert client is None, "silos that train in one pass have an app of their own"
        run_together(go, silos, recipe.federation.together)
    else:
        serve_inline(go, client or client_app(), silos)
    return folder, events


def adapter_bytes(folder: RunFolder) -> bytes:
    """The last saved state's tensors."""
    last = sorted(folder.states.glob("round-*"))[-1]
    return (last / "state.safetensors").read_bytes()
