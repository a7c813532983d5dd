"""A SuperLink on this machine, as its operator sees it: the nodes that it knows, and a run with a server of ours.

Flower starts a run for an app that it is sent, gives the app's server part to an executor, and sends the client part
to every node. Here the app is a name without code. The server part is this very process: it starts the run, takes its
task with the executor's secret, and talks to the nodes over Flower's own grid. The nodes' part is each silo's own
worker (`federation.carrier`).

What is used of Flower here is internal to it; its version is pinned, and tests/real run this against the real one.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from silotune.errors import FederationError, InputError, Interrupted

ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
"""What the executor's secret is asked for."""
PAUSE = 0.2
"""Seconds between two looks for the task of a run that was started."""
PATIENCE = 60.0
"""Seconds within which it must be there."""
NAMEPLATE = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "silotune"
version = "1.0.0"
description = "A name without code: a silo's worker answers for it."
license = "Apache-2.0"
dependencies = ["flwr>=1.42.0"]
[tool.flwr.app]
publisher = "silotune"
[tool.flwr.app.components]
serverapp = "nothing:server_app"
clientapp = "nothing:client_app"
"""

AWAY = 300.0
"""Seconds for which a SuperLink that does not answer is waited for in a run."""
Client = TypeVar("Client", bound=ProtobufClient)


@dataclass(frozen=True)
class Node:
    """A node that the SuperLink knows."""

    number: int
    name: str
    status: str
    """`registered` (it never came), `online`, or `offline`."""
    key: bytes
    """Its public key, PEM."""
    activated: str
    """When it last began, in ISO 8601; empty if it never did."""
    seen_until: float
    """Unix time until which it is taken to be there."""


@dataclass(frozen=True)
class SuperLink:
    """Where a SuperLink of this machine answers, and what shows that we are its operator."""

    address: str
    """HOST:PORT, on this machine."""
    certificates: Path
    """Of the CA that signed its own (PEM)."""
    secret: Path
    """The file with the executor's secret."""

    def nodes(self) -> Sequence[Node]:
        """The nodes that are registered.

        Raises:
            FederationError: the SuperLink does not answer.
        """
        with self._control() as control:
            found = control.ListNodes(ListNodesRequest()).nodes_info
        return [Node(one.node_id, one.name, one.status, one.public_key, one.last_activated_at, one.online_until)
                for one in found if one.status != "unregistered"]  # fmt: skip

    def register(self, key: bytes, name: str) -> int:
        """Let a node in by its public key (PEM); returns its number.

        Raises:
            FederationError: the SuperLink does not answer, or refuses the key.
        """
        with self._control() as control:
            return int(control.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)

    def unregister(self, number: int) -> None:
        """Let a node in no more.

        Raises:
            FederationError: the SuperLink does not answer, or does not know it.
        """
        with self._control() as control:
            control.UnregisterNode(UnregisterNodeRequest(node_id=number))

    @contextmanager
    def run(self, stop: threading.Event) -> Iterator[Grid]:
        """A run, and the grid of its nodes, for as long as the block lasts; it has failed if the block raises.

        A SuperLink that goes away is waited for: it may be started again.

        Args:
            stop: set to wait no longer.

        Raises:
            FederationError: the SuperLink does not answer, or gives us no task.
            Interrupted: `stop` was set while a SuperLink that had gone was waited for.
        """
        content, _ = build_fab_from_files({"pyproject.toml": NAMEPLATE.encode(), "nothing.py": b""})
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        with self._control() as control:
            run = control.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id
        grid = HttpGrid(self.address, root_certificates=self._root(), token=self._task_of(run))
        client = grid._runtime_client
        grid._retry_invoker.max_time, grid._retry_invoker.wait_function = AWAY, _waiting(stop)
        beat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        status, details = SubStatus.FAILED, "the run could not go on"
        try:
            beat.start()
            given = client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
            TaskIdentity.node_id = context_from_proto(given.context).node_id
            grid.set_run(run_from_proto(given.run))
            with self._answering():
                yield grid
            status, details = SubStatus.COMPLETED, ""
        finally:
            grid._retry_invoker.max_tries = 1  # a server that is away is not waited for at the end
            with suppress(httpx.HTTPError):  # else it will notice that the task's heartbeats have ended
                client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
            if beat.is_running:
                beat.stop()
            grid.close()

    def _task_of(self, run: int) -> str:
        """The token of a run's server task; tasks of runs whose process has gone are ended."""
        shown = SuperExecAuthHttpInterceptor(master_secret=self.secret.read_bytes(), protected_methods=ACQUIRE)
        until = time.monotonic() + PATIENCE
        with self._runtime([shown]) as client:
            while time.monotonic() < until:
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
                if not found.HasField("task") or not found.token:
                    time.sleep(PAUSE)
                elif found.task.run_id == run:
                    return str(found.token)
                else:
                    self._end(found.token)
        raise FederationError(f"the SuperLink at {self.address} gave no task for the run within {PATIENCE:g} s.")

    def _end(self, token: str) -> None:
        with self._runtime([RuntimeTokenHttpInterceptor(token)]) as client:
            client.PullTaskInput(PullTaskInputRequest())
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="its process has gone"))

    def _root(self) -> bytes:
        try:
            return self.certificates.read_bytes()
        except OSError as error:
            raise InputError(f"{self.certificates}: cannot be read ({error.strerror}).") from None

    @contextmanager
    def _control(self) -> Iterator[ControlHttpClient]:
        with self._answering(), closing(self._client(ControlHttpClient, [])) as client:
            yield client

    @contextmanager
    def _runtime(self, interceptors: Sequence[ProtobufClientInterceptor]) -> Iterator[RuntimeHttpClient]:
        named = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
        with self._answering(), closing(self._client(RuntimeHttpClient, [named, *interceptors])) as client:
            yield client

    def _client(self, kind: type[Client], interceptors: Sequence[ProtobufClientInterceptor]) -> Client:
        invoker = make_simple_http_retry_invoker()
        invoker.max_tries = 3
        return kind.from_server_address(
            server_address=self.address, insecure=False, root_certificates=self._root(), interceptors=interceptors,
            retry_invoker=invoker,
        )  # fmt: skip

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise FederationError(
                f"the SuperLink at {self.address} does not answer as it should ({type(error).__name__}): is "
                "`silotune consortium up` running?"
            ) from error


def _waiting(stop: threading.Event) -> Callable[[float], None]:
    """What waits between two attempts to reach a SuperLink, until the user asks to stop."""

    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise Interrupted("Stopped by the user while the SuperLink did not answer.")

    return wait


def activations(link: SuperLink) -> Callable[[], dict[int, str]]:
    """What tells, for each node that may come, when it last began: a message to it from before that is lost."""

    def look() -> dict[int, str]:
        return {node.number: node.activated if node.status == "online" else "" for node in link.nodes()}

    return look
