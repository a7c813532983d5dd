"""ServerApp and ClientApp: Flower's Message API on one side, `server` and `silo.answer` on the other.

Imports no torch: a deployed silo starts a process for every message, and some messages need none.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from silotune.data.silos.sources import SiloConfig
from silotune.federation.messages import content, envelope, hashed_once, ledger_entry
from silotune.federation.nodes import SCRATCH_VARIABLE, silo_of
from silotune.privacy import ledger
from silotune.silo.answer import ANSWERS, Answers, answer, guarded
from silotune.silo.progress import Progress, require_going
from silotune.wire.envelope import Envelope, Kind

Handler = Callable[[Message, Context], Message]
MOST_BYTES = 8 << 30
"""Most bytes of an adapter that a server may send; its exact size is checked against the model before it is used."""


def handle(message: Message, context: Context, kind: Kind, answers: Answers = ANSWERS) -> Message:
    """Answer a message of Flower's; every failure is an answer too.

    Every answer stands in the silo's own ledger, if it keeps one; what cannot be entered there does not leave.
    """
    known: list[SiloConfig] = []

    def work() -> Envelope:
        if scratch := os.environ.get(SCRATCH_VARIABLE):
            require_going(Path(scratch))
        silo = silo_of(context.node_config)
        known.append(silo)
        request = envelope(message, "down", kind, MOST_BYTES)
        Progress(silo.scratch, silo.files.name, int(request.fields.get("round", 0)), kind).still_wanted()
        return answer(request, silo, answers)

    reply = guarded(kind, work)
    book, name = (known[0].ledger, known[0].files.name) if known else _book_of(context)
    if book is not None:
        reply = guarded(kind, lambda: _entered(reply, message, book, name))
    return Message(content(reply), reply_to=message)


def _entered(reply: Envelope, message: Message, book: Path, name: str) -> Envelope:
    round_ = message.metadata.group_id
    with hashed_once():
        entry = ledger_entry(
            reply, Message(content(reply), reply_to=message), name, int(round_ if round_.isdecimal() else 0)
        )
    ledger.append(book, entry)
    return reply


def _book_of(context: Context) -> tuple[Path | None, str]:
    """The ledger and name of a silo whose configuration cannot be used, as far as it gives them."""
    book, name = context.node_config.get("ledger"), context.node_config.get("silo")
    return Path(book) if isinstance(book, str) else None, name if isinstance(name, str) else "this silo"


def make_client_app(answers: Answers = ANSWERS) -> ClientApp:
    """A ClientApp that answers for a silo."""
    app = ClientApp()
    registered: Mapping[Kind, Callable[[Handler], Handler]] = {
        "join": app.query(), "train": app.train(), "evaluate": app.evaluate(), "alone": app.train("alone"),
    }  # fmt: skip
    for kind, register in registered.items():
        register(functools.partial(handle, kind=kind, answers=answers))
    return app


client_app = make_client_app()


def make_server_app(serve: Callable[[Grid, Context], object]) -> ServerApp:
    """A ServerApp that runs `serve`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context)

    return app
