"""The carrier's process: Flower's SuperNode as its child, and what takes the messages to the worker."""

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from silotune.errors import InputError
from silotune.federation.carrier import Carrier

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds until a SuperNode that has ended is started again: at first, and at most. A server that was away turns one
away that comes back before it has noticed."""
PROGRAM = "from flwr.supernode.cli.flower_supernode import flower_supernode; flower_supernode()"
"""Flower's command, with this very Python."""
SOUND = 60.0
"""Seconds after which a SuperNode is taken to run well."""


def carry(
    folder: Path,
    socket: Path,
    superlink: str,
    port: int,
    certificates: Path | None,
    key: Path | None,
    stop: threading.Event,
) -> None:
    """Run a SuperNode, and carry its messages to the worker, until `stop` is set.

    Args:
        folder: of the carrier's own files.
        socket: where the worker answers.
        superlink: HOST:PORT of the SuperLink's Fleet API.
        port: of the SuperNode's API, on this machine.
        certificates: of the CA; None: those that the system trusts.
        key: of the node; None: it has none.
        stop: looked at several times a second.

    Raises:
        InputError: the folder cannot be written.
    """
    secret = secrets.token_bytes(32)
    file = folder / "executor.secret"
    try:
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(secret)
        (folder / "flower").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}).") from None
    command = [sys.executable, "-P", "-c", PROGRAM, "--superlink", superlink, "--isolation", "process",
               "--superexec-auth-secret-file", str(file), "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    command += ["--root-certificates", str(certificates)] if certificates is not None else []
    command += ["--auth-supernode-private-key", str(key)] if key is not None else []
    carrier = threading.Thread(target=Carrier(f"127.0.0.1:{port}", secret, socket).run, args=(stop,), daemon=True)
    carrier.start()
    _keep_running(command, os.environ | {"FLWR_HOME": str(folder / "flower")}, stop, carrier)
    if not stop.is_set():
        raise RuntimeError("the carrier has ended")  # whoever started this process starts it again
    carrier.join(5)


def _keep_running(
    command: list[str], environment: dict[str, str], stop: threading.Event, carrier: threading.Thread
) -> None:
    """Keep a SuperNode running while there is a carrier: it ends where the server is away, or does not take it yet."""
    pause = FIRST_PAUSE
    while not stop.is_set() and carrier.is_alive():
        began = time.monotonic()
        process = subprocess.Popen(command, env=environment)
        try:
            while process.poll() is None and carrier.is_alive() and not stop.wait(0.2):
                pass
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                if process.poll() is None:
                    process.kill()
                process.wait()
        if stop.is_set():
            return
        pause = FIRST_PAUSE if time.monotonic() - began > SOUND else pause
        logger.warning("the SuperNode has ended (code %s), and is started again in %g s", process.returncode, pause)
        stop.wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
