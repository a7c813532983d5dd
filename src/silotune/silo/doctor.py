"""Whether a silo can take part: each thing that it needs is looked at, and what is wrong comes with what to do."""

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from silotune.errors import SilotuneError
from silotune.silo.house import House
from silotune.silo.joining import HELLO, KNOWN, ask, clock_difference, public_half
from silotune.silo.up import as_user, environment, settle
from silotune.supervision import program

MOST_DIFFERENCE = 5.0
"""Seconds by which a node's clock may be ahead: Flower turns away what is signed later."""
LEAST_DISK, LEAST_MEMORY = 1 << 30, 1 << 30
"""Bytes that should be free, the base's own left out."""
WEEKS = 28
"""Days before the end of a certificate from which on it is said."""


@dataclass(frozen=True)
class Finding:
    """What was found of one thing."""

    name: str
    good: bool
    words: str
    """What was found; of what is wrong, what to do."""


def examine(house: House) -> Iterator[Finding]:
    """Look at everything in turn; slow things come last.

    Yields:
        A finding for each thing, as it is known.
    """
    looks: tuple[tuple[str, Callable[[House], str]], ...] = (
        ("text", _text),
        ("isolation", _isolation),
        ("disk", _disk),
        ("network", _network),
        ("certificate", _certificate),
        ("clock", _clock),
        ("membership", _membership),
        ("base and speed", _base),
        ("memory", _memory),
    )
    for name, look in looks:
        try:
            yield Finding(name, True, look(house))
        except SilotuneError as error:
            yield Finding(name, False, str(error))
        except OSError as error:
            yield Finding(name, False, f"{error.filename or name}: {error.strerror or error}")


class WrongError(SilotuneError):
    """Something is not as a silo needs it."""


def _text(house: House) -> str:
    files = house.config().files
    size = sum(Path(file).stat().st_size for file in (*files.train, *files.test))
    train, test = len(files.train), len(files.test)
    shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    return f"{train} file{'' if train == 1 else 's'} to train on, {test} to test on, {shown}"


def _isolation(house: House) -> str:
    worker, carrier = settle(house)
    if worker.number == carrier.number:
        return f'isolation = "none": both are {worker.name}, and whoever takes over that user reads the text'
    return f"worker as {worker.name}, carrier as {carrier.name}, which can read nothing of the worker's"


def _disk(house: House) -> str:
    free = shutil.disk_usage(house.own if house.own.exists() else house.folder).free
    if free < LEAST_DISK:
        raise WrongError(f"{house.own}: {free / 1e9:.1f} GB are free, and 1 GB should be. Make room.")
    return f"{free / 1e9:.1f} GB free"


def _network(house: House) -> str:
    link = house.silo.superlink
    told = ask(link.address, HELLO, _certificates(house))
    return f"{link.address} answers, for consortium {str(told.get('consortium'))[:64]}"


def _certificate(house: House) -> str:
    host, _, port = house.silo.superlink.address.rpartition(":")
    place = _certificates(house)
    context = ssl.create_default_context(cafile=str(place) if place else None)
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")) as wrapped,
        ):
            until = ssl.cert_time_to_seconds(str((wrapped.getpeercert() or {})["notAfter"]))
    except (OSError, KeyError) as error:
        raise WrongError(f"its certificate could not be looked at ({type(error).__name__}).") from None
    days = (until - datetime.now(UTC).timestamp()) / 86400
    if days < WEEKS:
        return f"holds for {days:.0f} days more: the coordinator should renew it soon (silotune consortium rotate)"
    return f"holds for {days:.0f} days more"


def _clock(house: House) -> str:
    ahead = clock_difference(house.silo.superlink.address, _certificates(house))
    if abs(ahead) > MOST_DIFFERENCE:
        raise WrongError(
            f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the consortium's, and "
            f"no more than {MOST_DIFFERENCE:.0f} s will do: have it set by NTP (timedatectl set-ntp true)."
        )
    return f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the consortium's"


def _membership(house: House) -> str:
    key = house.silo.superlink.key
    if key is None:
        raise WrongError("superlink.key: there is none, and the consortium lets in members by key: silotune silo join")
    told = ask(house.silo.superlink.address, KNOWN, _certificates(house),
               {"node_key": public_half(Path(key))})  # fmt: skip
    if told.get("name") is None:
        raise WrongError("the consortium does not know this silo's key: ask for an invitation, and join.")
    return f"known to the consortium as {str(told['name'])[:64]}"


def _base(house: House) -> str:
    """As the worker's user, and without a network if it has one of its own: as it will be."""
    worker, _ = house.users()
    command = [*as_user(worker, network=True), *program("silo", "worker", house.folder, "--measure")]
    done = subprocess.run(
        command, cwd=house.own, env=environment(worker, house.own), check=False, text=True, stdin=subprocess.DEVNULL,
        capture_output=True, umask=0o077,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it ended without a word"]
        raise WrongError(lines[-1].removeprefix("silotune: ")[:500])
    told = json.loads(done.stdout.splitlines()[-1])
    return f"fingerprint {told['fingerprint']}; a step of training takes {told['seconds']:.2f} s"


def _memory(_: House) -> str:
    free = psutil.virtual_memory().available
    if free < LEAST_MEMORY:
        raise WrongError(f"{free / 1e9:.1f} GB of memory are free, and 1 GB beside the base should be. End something.")
    return f"{free / 1e9:.1f} GB free"


def _certificates(house: House) -> Path | None:
    place = house.silo.superlink.certificates
    return Path(place) if place is not None else None
