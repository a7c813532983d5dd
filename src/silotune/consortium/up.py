"""A consortium's two processes, kept running: Flower's SuperLink on this machine alone, and the gateway before it."""

import os
import pwd
import sys
import threading
from pathlib import Path

from silotune import units
from silotune.consortium.folder import CA, CERTIFICATE, KEY, SECRET, Consortium
from silotune.errors import InputError
from silotune.supervision import Part, Tell, keep, program
from silotune.units import Unit

SUPERLINK = "from flwr.superlink.cli.flower_superlink import flower_superlink; flower_superlink()"
"""Flower's command, with this very Python."""


def up(consortium: Consortium, stop: threading.Event, tell: Tell) -> None:
    """Keep SuperLink and gateway running until `stop` is set; both begin anew when the certificate is another.

    Raises:
        InputError: the folder cannot be written.
    """
    folder, settings = consortium.folder, consortium.settings
    own = folder / "superlink"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(f"{own}: cannot be made ({error.strerror}).") from None
    # Nothing of Flower's starts an app here: a run's server is the process that starts it (`train`).
    superlink = [
        sys.executable, "-P", "-c", SUPERLINK, "--host", "127.0.0.1", "--port", settings.superlink_port,
        "--isolation", "process", "--superexec-auth-secret-file", folder / SECRET, "--enable-supernode-auth",
        "--ssl-ca-certfile", folder / CA, "--ssl-certfile", folder / CERTIFICATE, "--ssl-keyfile", folder / KEY,
        "--database", own / "state.db",
    ]  # fmt: skip
    environment = {**os.environ, "FLWR_HOME": str(own), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    parts = [
        Part("SuperLink", list(map(str, superlink)), own, environment),
        Part("gateway", program("consortium", "gateway", folder), own, environment),
    ]
    certificate = folder / CERTIFICATE
    seen = [certificate.stat().st_mtime_ns]

    def renewed() -> None:
        if (now := certificate.stat().st_mtime_ns) != seen[0]:
            seen[0] = now
            tell("the server has another certificate: both parts begin anew")
            for part in parts:
                part.end()

    tell(f"consortium {settings.name}: members reach it at {consortium.address}")
    keep(parts, stop, tell, renewed)


def write_units(consortium: Consortium) -> Path:
    """Write the unit of a consortium's server into its folder; returns its path.

    Raises:
        InputError: it cannot be written.
    """
    name, user = consortium.settings.name, pwd.getpwuid(os.geteuid()).pw_name
    server = Unit(f"silotune-consortium-{name}", f"silotune consortium {name}", ("consortium", "up", consortium.folder),
                  user, (consortium.folder,), more=("PrivateDevices=yes", "ProtectProc=invisible"))  # fmt: skip
    (place,) = units.write([server], consortium.folder)
    return place
