"""A silo's carrier: it takes Flower's messages to the silo's worker, and brings the answers back.

It stands where Flower's own executor stands. A SuperNode in process isolation has a task for each message, and gives it
to whoever shows the executor's secret. Flower's executor then installs the app that came with the run, and starts a
process that loads and calls it. This one does neither: no code that was sent is ever run. It pulls the message, takes
the envelope in it to the worker's socket, and pushes the answer; what is no envelope is answered with a refusal.

What is used of Flower here is internal to it, and used nowhere else. Its version is pinned, and
`tests/real/test_house.py` runs this against the real SuperNode.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.app import Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from silotune.errors import AdmissionError
from silotune.federation.messages import TYPES, content, envelope
from silotune.silo import worker
from silotune.wire.envelope import Envelope, Kind, failure

logger = logging.getLogger(__name__)

ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
"""What the executor's secret is asked for."""
PAUSE = 0.2
"""Seconds between two looks for a task."""
KINDS: dict[str, Kind] = {name: kind for kind, name in TYPES.items()}
RESTART = 90.0
"""Seconds that a worker which is away is waited for: it may be starting."""
NO_WORKER = "this silo's worker does not answer: whoever runs the silo must start it"


@dataclass(frozen=True)
class Carrier:
    """Between a SuperNode and a worker."""

    address: str
    """HOST:PORT of the SuperNode's Runtime API, on this machine."""
    secret: bytes
    """The executor's, that the SuperNode was started with."""
    place: Path
    """Path of the worker's socket."""

    def run(self, stop: threading.Event) -> None:
        """Carry until `stop` is set; a SuperNode that is away is waited for."""
        shown = SuperExecAuthHttpInterceptor(master_secret=self.secret, protected_methods=ACQUIRE)
        client = self._client([shown])
        away = False
        while not stop.wait(PAUSE):
            try:
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
            except (Exception, RunNotRunningException) as error:
                if not away:
                    logger.warning("the SuperNode does not answer (%s): waiting for it", type(error).__name__)
                away = True
                continue
            away = False
            if found.HasField("task") and found.token:
                try:
                    self._carry(found.token)
                except (Exception, RunNotRunningException) as error:  # the next message must find a carrier
                    logger.warning("a message could not be carried: %s", type(error).__name__)
        client.close()

    def _client(self, interceptors: Sequence[ProtobufClientInterceptor]) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=True,  # it is on this machine
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), *interceptors],
            retry_invoker=make_simple_http_retry_invoker(),
        )

    def _carry(self, token: str) -> None:
        """Take one message to the worker, and push its answer."""
        client = self._client([RuntimeTokenHttpInterceptor(token)])
        beat = HeartbeatSender(lambda: _beats(client))
        beat.start()
        context, status, details = None, SubStatus.FAILED, "the message could not be carried"
        try:
            message, context, _, _ = pull_task_input(client)  # the app that came along is left where it is
            push_message(client, answered(message, self.place), context)
            status, details = SubStatus.COMPLETED, ""
        finally:
            push_task_output(client, context, status, details)
            if beat.is_running:
                beat.stop()
            client.close()


def answered(message: Message, place: Path) -> Message:
    """The worker's answer to a message; one that is no envelope never reaches it."""
    kind = KINDS.get(message.metadata.message_type)
    if kind is None:
        refusal = failure("join", "this silo answers silotune's messages and no others")
        return Message(content(refusal), reply_to=message)
    return Message(content(_asked(message, kind, place)), reply_to=message)


def _asked(message: Message, kind: Kind, place: Path) -> Envelope:
    try:
        request, until = envelope(message, "down", kind, worker.MOST_BYTES), time.monotonic() + RESTART
        while True:
            try:
                return worker.ask(place, request, message.metadata.ttl)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > until:
                    raise
                time.sleep(1.0)
    except AdmissionError as error:
        return failure(kind, str(error))
    except OSError:
        return failure(kind, NO_WORKER)
    except Exception as error:  # of a message that may hold whatever it likes
        return failure(kind, f"the message cannot be read ({type(error).__name__})")


def _beats(client: RuntimeHttpClient) -> bool:
    """Tell the SuperNode that its task is worked on; whether it still wants it shows when the answer is pushed."""
    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except httpx.HTTPError:
        return False
    return True
