"""ServerApp and ClientApp: Flower's Message API on one side, `server` and `client` on the other.

Imports no torch: a deployed silo starts a process for every message, and some messages need none.
"""

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from silotune.federation.client import answer, guarded, silo_of
from silotune.federation.messages import content, envelope, ledger_entry
from silotune.privacy import ledger
from silotune.wire.envelope import Envelope, Kind

MOST_BYTES = 8 << 30
"""Of an adapter that a server may send; its true size is checked against the model before it is used."""


def handle(message: Message, context: Context, kind: Kind) -> Message:
    """Answer a message of Flower's; every failure is an answer too."""

    def work() -> Envelope:
        silo = silo_of(context.node_config)
        request = envelope(message, "down", kind, MOST_BYTES)
        reply = answer(request, silo)
        if silo.ledger is not None:
            outgoing = Message(content(reply), reply_to=message)
            round_ = int(request.fields.get("round", 0))
            ledger.append(silo.ledger, ledger_entry(reply, outgoing, silo.files.name, round_))
        return reply

    return Message(content(guarded(kind, work)), reply_to=message)


client_app = ClientApp()


@client_app.query()
def hello(message: Message, context: Context) -> Message:
    """Say who the silo is and how much it holds."""
    return handle(message, context, "hello")


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the silo's rows."""
    return handle(message, context, "train")


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the adapter on the silo's held-out rows."""
    return handle(message, context, "evaluate")


def make_server_app(serve: Callable[[Grid, Context], None]) -> ServerApp:
    """A ServerApp that runs `serve`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context)

    return app
