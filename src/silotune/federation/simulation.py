"""On Flower's simulation engine: silos share worker processes, which stay and keep the base model.

Flower's only backend is Ray. A cluster is started for the run alone, in a folder of its own, and ends with it. A
worker that dies (killed, out of memory) is started anew and its message answered again: local training is a
function of the message, the silo's rows and what it remembered before the round, so the run's result stays the same to
the bit.

A silo that did not answer in time is called off: its work ends at its next step, and where it had not begun yet it
never does, so that it does not stand before the next round's. A worker that hangs between two steps keeps its slot
until the run ends; then it is ended too.
"""

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.app import ConfigRecordValues
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from silotune.errors import FederationError
from silotune.federation.app import make_client_app, make_server_app
from silotune.federation.events import RunContext
from silotune.federation.local import LocalSilos
from silotune.federation.reaper import end_all, end_workers, reaped
from silotune.silo.progress import ask_to_stop
from silotune.silo.worker import Worker

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 512 << 20
"""Shared memory of Ray for messages under way."""
STARTS = 3
"""How often Ray is tried to be started."""
RESTARTS = 3
"""How often a message is answered again after its worker died."""
LAST_STEP = 5.0
"""Seconds for workers to come to their next step when the run is over; those that do not are ended."""
LONGEST_SOCKET = 103
"""Bytes of a socket's path at most, on every system."""
RAYS_PART = len("/sr-12345678/session_2026-01-01_00-00-00_123456_1234567/sockets/plasma_store.12")


def run_simulation(
    serve: Callable[[Grid], object],
    workers: Sequence[Worker],
    local_silos: LocalSilos,
    run_context: RunContext,
) -> None:
    """Run a ServerApp that serves, with one virtual node a silo; what `serve` raises comes through.

    Args:
        serve: runs a federation over Flower's grid.
        workers: of the silos; they travel to the processes of the engine with each message.
        local_silos: how the silos share the machine.
        run_context: with a scratch folder.

    Raises:
        FederationError: the engine could not be started or broke down.
    """
    assert run_context.scratch is not None
    ray_folder = _ray_folder()
    with reaped(ray_folder, run_context.scratch), _ray(local_silos, ray_folder):
        _run(serve, make_client_app(workers), local_silos, run_context, ray_folder)


def _ray_folder() -> Path:
    """A folder for Ray, which puts sockets below it: where the usual place has too long a path, in /tmp."""
    usual = Path(tempfile.gettempdir()).resolve()
    short = len(os.fsencode(usual)) + RAYS_PART <= LONGEST_SOCKET
    return Path(tempfile.mkdtemp(prefix="sr-", dir=usual if short else "/tmp")).resolve()


def _run(
    serve: Callable[[Grid], object],
    client_app: ClientApp,
    local_silos: LocalSilos,
    run_context: RunContext,
    ray_folder: Path,
) -> None:
    import flwr.simulation

    outcome: list[BaseException] = []
    served: list[bool] = []
    over = threading.Event()

    def serve_and_keep(grid: Grid) -> None:
        try:
            serve(grid)
            served.append(True)
        except BaseException as error:
            outcome.append(error)
        finally:
            threading.Thread(target=_end_work, args=(over, run_context, ray_folder), daemon=True).start()

    try:
        flwr.simulation.run_simulation(
            server_app=make_server_app(lambda grid, _: serve_and_keep(grid)),
            client_app=client_app,
            num_supernodes=len(local_silos.silos),
            backend_config={"client_resources": _share(local_silos)},
        )
    except Exception as error:
        if not served and not outcome:
            run_context.stop.set()  # the server's thread must not wait for silos that cannot come
            raise FederationError(
                f"Flower's simulation engine broke down ({type(error).__name__}); see the log."
            ) from error
    finally:
        over.set()
    if outcome:
        raise outcome[0]
    if not served:
        raise FederationError("Flower's simulation engine ended before the run did; see the log.")


def _end_work(over: threading.Event, run_context: RunContext, ray_folder: Path) -> None:
    """Bring the engine to its end: it waits for whatever its workers do, and nobody wants that any more."""
    if run_context.scratch is not None:
        ask_to_stop(run_context.scratch)
    while not over.wait(LAST_STEP):
        end_workers(ray_folder)


@contextmanager
def _ray(local_silos: LocalSilos, folder: Path) -> Iterator[None]:
    """A cluster that Flower's engine finds while the block lasts; one that is there already is taken as it is.

    Ray gives a node 30 seconds to come up. A machine that is busy, or has not read Ray from its disk yet, may need
    more: so it is tried more than once.

    Raises:
        FederationError: it does not start.
    """
    import ray

    if not ray.is_initialized():
        _start_ray(local_silos, folder)
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(local_silos: LocalSilos, folder: Path) -> None:
    import ray

    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": str(local_silos.threads),
    }
    for left in reversed(range(STARTS)):
        try:
            ray.init(
                address="local",
                num_cpus=local_silos.workers,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                runtime_env={"env_vars": variables},
                _temp_dir=str(folder),
            )
            return
        except Exception as error:
            end_all(folder)
            logger.warning("Ray did not start (%s); %d more tries", type(error).__name__, left)
            if not left:
                raise FederationError("Ray, which runs the simulation, did not start; see the log.") from error


def _share(local_silos: LocalSilos) -> dict[str, ConfigRecordValues]:
    """Ray's options for a worker: one slot each, a share of the GPUs, and another try when it dies."""
    import torch

    gpus = torch.cuda.device_count() / local_silos.workers if local_silos.silos[0].device != "cpu" else 0.0
    return {"num_cpus": 1, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": RESTARTS}
