"""ServerApp and ClientApp: Flower's Message API on one side, `server` and the silos' workers on the other."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from silotune.federation.messages import content, envelope
from silotune.silo.answer import guarded
from silotune.silo.worker import Worker
from silotune.wire.envelope import Kind

Handler = Callable[[Message, Context], Message]
MOST_BYTES = 8 << 30
"""Most bytes of an adapter that a server may send; its exact size is checked against the model before it is used."""
PARTITION = "partition-id"
"""Flower's number for a virtual silo, from 0."""


def handle(message: Message, context: Context, kind: Kind, workers: Sequence[Worker]) -> Message:
    """Answer a message of Flower's; every failure is an answer too."""
    worker = workers[int(context.node_config[PARTITION])]
    reply = guarded(kind, lambda: worker.answer(envelope(message, "down", kind, MOST_BYTES)), worker.silo)
    return Message(content(reply), reply_to=message)


def make_client_app(workers: Sequence[Worker]) -> ClientApp:
    """A ClientApp that answers for the silos of this machine, by their partitions."""
    return registered(lambda kind: partial(handle, kind=kind, workers=workers))


def registered(handler: Callable[[Kind], Handler]) -> ClientApp:
    """A ClientApp with a handler for each kind of message."""
    app = ClientApp()
    places: Mapping[Kind, Callable[[Handler], Handler]] = {
        "join": app.query(), "train": app.train(), "evaluate": app.evaluate(), "alone": app.train("alone"),
    }  # fmt: skip
    for kind, register in places.items():
        register(handler(kind))
    return app


def make_server_app(serve: Callable[[Grid, Context], object]) -> ServerApp:
    """A ServerApp that runs `serve`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context)

    return app
