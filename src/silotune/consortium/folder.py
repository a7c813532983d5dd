"""A consortium's folder on its coordinator's machine.

    FOLDER/consortium.toml    who it is and where it is reached (`settings.consortium`)
    FOLDER/ca.pem, ca.key     the certificate authority; the key signs servers, and is needed by nothing that runs
    FOLDER/server.pem, .key   by which members know the server
    FOLDER/executor.secret    what shows the SuperLink that a run's server is ours
    FOLDER/members.json       the members, with their keys, and the invitations that are open (`membership`)
    FOLDER/paused             there while no round is to begin
    FOLDER/running.json       the run that goes on, if one does
    FOLDER/superlink/         what Flower's SuperLink keeps

Keys and secrets are their owner's alone (mode 600), and so is the folder (700).
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w
from filelock import FileLock, Timeout

from silotune import atomic
from silotune.consortium.authority import ca_certificate, draw_key, pem_of, server_certificate
from silotune.errors import FederationError, InputError
from silotune.recipe.checking import checked
from silotune.recipe.reading import parsed
from silotune.settings.consortium import ConsortiumSettings

if TYPE_CHECKING:  # it loads Flower
    from silotune.federation.superlink import SuperLink

SETTINGS, MEMBERS, PAUSED, RUNNING = "consortium.toml", "members.json", "paused", "running.json"
CA, CA_KEY, CERTIFICATE, KEY, SECRET = "ca.pem", "ca.key", "server.pem", "server.key", "executor.secret"
KEYS = "docs/silo.md lists every key"


@dataclass(frozen=True)
class Consortium:
    """A consortium's folder, read and checked."""

    folder: Path
    settings: ConsortiumSettings

    @property
    def address(self) -> str:
        """HOST:PORT where members reach it."""
        host = self.settings.host
        return f"{f'[{host}]' if ':' in host else host}:{self.settings.port}"

    @property
    def link(self) -> "SuperLink":
        """Its SuperLink, as the operator of this machine sees it."""
        from silotune.federation.superlink import SuperLink

        return SuperLink(f"127.0.0.1:{self.settings.superlink_port}", self.folder / CA, self.folder / SECRET)

    @property
    def paused(self) -> bool:
        """Whether no round is to begin."""
        return (self.folder / PAUSED).exists()


def create(folder: Path, settings: ConsortiumSettings) -> Consortium:
    """Make a consortium's folder, with its own certificate authority.

    Raises:
        InputError: something is there already, or it cannot be written.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: something is there already; name a new folder.")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        ca_key = draw_key()
        _write_private(folder / CA_KEY, pem_of(ca_key))
        (folder / CA).write_bytes(ca_certificate(settings.name, ca_key))
        found = Consortium(folder.resolve(), settings)
        renew(found)
        (folder / SETTINGS).write_text(tomli_w.dumps(settings.model_dump()), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be written ({error.strerror}).") from None
    return found


def renew(consortium: Consortium) -> None:
    """Give the server a new key and certificate, and its executor another secret; members need nothing new.

    Raises:
        InputError: the CA's key is not here, or the folder cannot be written.
    """
    folder, key = consortium.folder, draw_key()
    try:
        ca, ca_key = (folder / CA).read_bytes(), (folder / CA_KEY).read_bytes()
        _write_private(folder / KEY, pem_of(key))
        _write_private(folder / SECRET, secrets.token_bytes(32))
        # What is looked at for whether they are new comes last.
        atomic.write_bytes(folder / CERTIFICATE, server_certificate(consortium.settings.host, key, ca, ca_key))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read or written ({error.strerror}).") from None


def _write_private(place: Path, content: bytes) -> None:
    atomic.write_bytes(place, content, private=True)


def open_consortium(folder: Path) -> Consortium:
    """Read a consortium's folder.

    Raises:
        InputError: it is none, or a file in it holds what cannot be used.
    """
    place = folder.expanduser().resolve()
    if not (place / SETTINGS).exists():
        raise InputError(f"{folder}: not a consortium's folder, for it holds no {SETTINGS}: silotune consortium init")
    settings = checked(ConsortiumSettings, parsed(place / SETTINGS), str(place / SETTINGS), KEYS)
    return Consortium(place, settings)


@contextmanager
def running(consortium: Consortium, run: Path) -> Iterator[None]:
    """Have a consortium work on one run and no other while the block lasts, and `status` find it.

    Raises:
        InputError: it works on another one.
    """
    place, lock = consortium.folder / RUNNING, _lock(consortium)
    try:
        lock.acquire(timeout=1)  # whoever looks whether there is a run holds it for a moment
    except Timeout:
        other = now_running(consortium)
        raise InputError(f"{consortium.folder}: another run goes on ({other}); wait for its end.") from None
    try:
        atomic.write_text(place, json.dumps({"run": str(run)}) + "\n", durable=False)
        yield
    finally:
        place.unlink(missing_ok=True)
        lock.release()


def _lock(consortium: Consortium) -> FileLock:
    """Held by the process of the run that goes on; it ends with that process."""
    return FileLock(consortium.folder / ".running.lock", mode=0o600)


def now_running(consortium: Consortium) -> Path | None:
    """The folder of the run that goes on; what a process that was killed has left there is none.

    Raises:
        FederationError: what says so cannot be read.
    """
    try:
        with _lock(consortium).acquire(timeout=0):
            return None
    except Timeout:
        pass
    try:
        return Path(json.loads((consortium.folder / RUNNING).read_text(encoding="utf-8"))["run"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise FederationError(f"{consortium.folder / RUNNING}: cannot be read.") from None


def set_paused(consortium: Consortium, *, paused: bool) -> None:
    """Let no round begin, or let them begin again.

    Raises:
        InputError: the folder cannot be written.
    """
    place = consortium.folder / PAUSED
    try:
        if paused:
            place.touch(0o600)
        else:
            place.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror}).") from None
