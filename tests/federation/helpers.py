"""Runs of tiny federations, and a ClientApp that misbehaves on purpose."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from silotune.federation import app, local
from silotune.federation import run as run_folder
from silotune.federation.events import Event, RunContext
from silotune.federation.inline import InlineGrid, run_inline
from silotune.federation.messages import TYPES
from silotune.federation.result import adapter_spec
from silotune.federation.run import RunFolder
from silotune.federation.server import federate
from silotune.federation.together import run_together
from silotune.settings import Recipe

Change = Callable[[Message, Message, str], Message | None]
"""(request, honest reply, silo) -> another reply, or None for the honest one."""


def client_app(change: Change = lambda *_: None) -> ClientApp:
    """The real ClientApp, whose replies `change` may replace."""
    made = ClientApp()

    def register(kind: str, handler: Callable[[Message, Context], Message]) -> None:
        def handle(message: Message, context: Context) -> Message:
            from silotune.federation.nodes import silo_of

            reply = handler(message, context)
            return change(message, reply, silo_of(context.node_config).files.name) or reply

        where, _, action = kind.partition(".")
        register_in = {"query": made.query, "train": made.train, "evaluate": made.evaluate}[where]
        register_in(*([action] if action else []))(handle)

    for kind, name in TYPES.items():
        register(name, functools.partial(app.handle, kind=kind))
    return made


class Network(Grid):
    """A grid whose nodes come and go and are slow as a test says; an inline one answers for them."""

    def __init__(self, client: ClientApp, silos: Any) -> None:
        self.inner = InlineGrid(client, silos)
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


def serve(grid: Network, recipe: Recipe, out: Path, expected: int, watch: Any = lambda _: None) -> RunFolder:
    """Run a federation as on the members' machines: over a grid on which nodes come and go."""
    folder = run_folder.reopen(out, recipe) if out.exists() else run_folder.create(recipe, out)
    federate(grid, recipe, folder, RunContext(expected, fixed=False, watch=watch), adapter_spec(recipe))
    return folder


def run(
    recipe: Recipe, out: Path, client: ClientApp | None = None, stop_after: str | None = None, watch: Any = None
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
        run_inline(go, client or app.client_app, silos)
    return folder, events


def adapter_bytes(folder: RunFolder) -> bytes:
    """The last saved state's tensors."""
    last = sorted(folder.states.glob("round-*"))[-1]
    return (last / "state.safetensors").read_bytes()
