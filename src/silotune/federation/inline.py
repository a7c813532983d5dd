"""The inline engine: Flower's own apps in this process, one silo after another.

The oracle of the tests, and the quickest way on a small machine: no process is started.

Silos answer in turn, and a deadline counts for each by itself, from the start of its own work: a silo is late here if
it would be late on the simulation engine with a worker for every silo. It is not cut short there and then: its
answer is thrown away when it comes. Silos that train together (`federation.together`) begin and end at once: the time
of each is that of them all.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from silotune.federation.app import PARTITION, make_client_app, make_server_app
from silotune.federation.messages import TYPES
from silotune.silo.worker import Worker

if TYPE_CHECKING:  # it loads torch
    from silotune.federation.together import Together

SERVER = 1
"""Flower's number for the server."""


class InlineGrid(Grid):
    """A `Grid` that calls the ClientApp itself: one message each time that answers are pulled.

    Where silos train together, it is the messages of as many silos.
    """

    def __init__(self, client_app: ClientApp, silos: int, together: "Together | None" = None) -> None:
        """Make a node for every silo, numbered from 1 by its partition; `together` trains several in one pass."""
        self._app = client_app
        self._together = together
        self._contexts = {
            partition + 1: Context(
                run_id=1, node_id=partition + 1, node_config={PARTITION: partition}, state=RecordDict(), run_config={}
            )
            for partition in range(silos)
        }
        self._pending: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SERVER, 1

    def get_node_ids(self) -> Iterable[int]:
        """Every silo is always here."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their answers are asked for."""
        identifiers = []
        for message in messages:
            identifier = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = identifier
            self._pending[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Have the next of these messages answered, and return the answer."""
        waiting = [identifier for identifier in message_ids if identifier in self._pending]
        messages = [self._pending.pop(identifier) for identifier in self._next(waiting)]
        if self._together is not None and len(messages) > 1:
            self._together.train_all([(message, self._contexts[message.metadata.dst_node_id]) for message in messages])
        return [self._answer(message) for message in messages]

    def _next(self, waiting: Sequence[str]) -> Sequence[str]:
        """The first of the messages that wait, with those that are answered together with it."""

        def kind(identifier: str) -> tuple[str, str]:
            metadata = self._pending[identifier].metadata
            return metadata.message_type, metadata.group_id

        if self._together is None or not waiting or kind(waiting[0])[0] != TYPES["train"]:
            return waiting[:1]
        return [identifier for identifier in waiting if kind(identifier) == kind(waiting[0])][: self._together.most]

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # as Flower's runtimes do
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, and pull until all are answered; an answer in this process cannot be cut short by a timeout."""
        del timeout
        waiting = list(self.push_messages(messages))
        answers: list[Message] = []
        while pulled := list(self.pull_messages(waiting)):
            answers += pulled
        return answers

    def set_run(self, run: object) -> None:
        """There is one run only."""

    @property
    def run(self) -> Any:
        """There is one run only, and it needs no description."""
        return None

    def create_message(self, *_: object, **__: object) -> Message:
        """Deprecated in Flower; messages are made with their constructor."""
        raise NotImplementedError("use flwr.app.Message(...)")


def run_inline(serve: Callable[[Grid], object], workers: Sequence[Worker], together: "Together | None" = None) -> None:
    """Run a ServerApp that serves, over a grid of these silos; what `serve` raises comes through.

    Args:
        serve: the server.
        workers: of the silos.
        together: what trains several silos in one pass, and answers in their workers for them.
    """
    server_app: ServerApp = make_server_app(lambda grid, _: serve(grid))
    context = Context(run_id=1, node_id=SERVER, node_config={}, state=RecordDict(), run_config={})
    server_app(InlineGrid(make_client_app(workers), len(workers), together), context)
