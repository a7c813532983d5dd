"""Worker and carrier, started as their users, watched, and started again when they end.

As root, each part runs under its own user with no capability and no way to gain one; the worker has a network of its
own without any way out. Otherwise both run as whoever starts them, if the policy says `isolation = "none"`.
"""

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from silotune.errors import InputError
from silotune.silo.house import MEET, NODE_KEY, House, User, can, require_startable
from silotune.supervision import Part, Tell, keep, program

PASSED = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "SILOTUNE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS",
          "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy",
          "SSL_CERT_FILE", "SSL_CERT_DIR")  # fmt: skip
"""Names of the environment that parts under other users are given."""
CARRIER_PAUSE = 10.0
"""Seconds until a carrier is started again, at most: a server that has not noticed that it had gone turns it away."""


def up(house: House, stop: threading.Event, tell: Tell) -> None:
    """Keep worker and carrier of a silo running until `stop` is set.

    Raises:
        InputError: they cannot be kept apart as the policy asks, or something that they need cannot be read.
    """
    worker, carrier = settle(house)
    if worker.number == carrier.number:
        tell('isolation = "none": worker and carrier are one user, and whoever takes over that user reads the text')
    fetch = [*as_user(worker, network=True), *program("silo", "worker", house.folder, "--fetch")]
    done = subprocess.run(
        fetch, cwd=house.own, env=environment(worker, house.own), check=False, umask=0o077, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    if done.returncode:
        raise InputError(f"the worker cannot start: {done.stdout.strip()[-2000:]}")
    parts = [
        Part("worker", [*as_user(worker, network=False), *program("silo", "worker", house.folder)],
             house.own, environment(worker, house.own)),
        Part("carrier", [*as_user(carrier, network=True), *program("silo", "carrier"), *carried(house)],
             house.carrier_folder, environment(carrier, house.carrier_folder), longest=CARRIER_PAUSE),
    ]  # fmt: skip
    tell(f"worker as {worker.name}, carrier as {carrier.name}, on the way to {house.silo.superlink.address}")
    keep(parts, stop, tell)


def settle(house: House) -> tuple[User, User]:
    """Give worker and carrier what is theirs, and return their users.

    Raises:
        InputError: they cannot be kept apart as the policy asks, or something that they need cannot be read.
    """
    worker, carrier = house.users()
    require_startable(house)
    prepare(house, worker, carrier)
    if worker.number != carrier.number:
        require_apart(house, worker, carrier)
    return worker, carrier


def prepare(house: House, worker: User, carrier: User) -> None:
    """Make the folders where the two meet and work, and give each its own.

    Raises:
        InputError: that is not possible here.
    """
    meet, carried = house.folder / MEET, house.carrier_folder
    try:
        for folder in (meet, carried, house.own):
            folder.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            _give(house.folder, 0, 0, 0o711)
            for place in house.ruled:
                _give(place, 0, worker.group, 0o640)
            _give(house.own, worker.number, worker.group, 0o700)
            memory = Path(house.silo.memory)
            for place in (memory, *memory.glob("*")) if memory.exists() else ():  # `join` began it, as root
                if place.lstat().st_uid == 0:
                    _give(place, worker.number, worker.group, 0o700 if place.is_dir() else 0o600)
            _give(meet, worker.number, carrier.group, 0o750)
            _give(carried, carrier.number, carrier.group, 0o700)
            if (carried / NODE_KEY).exists():
                _give(carried / NODE_KEY, carrier.number, carrier.group, 0o600)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be set up ({error.strerror}).") from None


def _give(place: Path, user: int, group: int, mode: int) -> None:
    """Give a file or folder to a user, and never what a link leads to: its folder may be another user's."""
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_nlink > 1 and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise InputError(f"{place}: has another name elsewhere (a hard link). Put a file of its own there.")
        os.fchown(descriptor, user, group)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def require_apart(house: House, worker: User, carrier: User) -> None:
    """Refuse to start where the carrier's user can read what is the worker's, or one of them cannot read what it needs.

    Raises:
        InputError: naming the file and what to do.
    """
    around = sorted({place.parent for place in house.needed} - {house.folder})
    kept: tuple[tuple[Literal["read", "write"], Sequence[Path]], ...] = (
        ("read", house.private), ("write", [*house.needed, *around]),
    )  # fmt: skip
    for how, places in kept:
        if open_to := can(carrier, how, places):
            raise InputError(
                f"{open_to[0]}: the carrier's user, {carrier.name}, can {how} this, and so could whatever a server "
                "sends. Give it to the worker's user alone (chown, chmod 700)."
            )
    link = house.silo.superlink
    of_the_carrier = [Path(place) for place in (link.certificates, link.key) if place is not None]
    for part, who, needed in (("worker", worker, house.needed), ("carrier", carrier, of_the_carrier)):
        if closed := set(needed) - set(can(who, "read", needed)):
            raise InputError(f"{min(closed)}: the {part}'s user, {who.name}, cannot read this, and needs it.")


def as_user(user: User, network: bool) -> list[str]:
    """What comes before a command that is to run as a user; nothing where this process is that user."""
    if user.number == os.geteuid():
        return []
    for tool in ("setpriv", "unshare"):
        if shutil.which(tool) is None:
            raise InputError(f"{tool} is not on this machine: two users need it, and it comes with util-linux.")
    alone = [] if network else ["unshare", "--net", "--"]
    return [*alone, "setpriv", f"--reuid={user.number}", f"--regid={user.group}", "--clear-groups", "--no-new-privs",
            "--inh-caps=-all", "--bounding-set=-all", "--pdeathsig=TERM", "--"]  # fmt: skip


def carried(house: House) -> list[str]:
    """What a carrier is told, as arguments of its command: nothing that is the worker's."""
    link = house.silo.superlink
    told = ["--socket", str(house.socket), "--superlink", link.address]
    for option, value in (("--certificates", link.certificates), ("--key", link.key)):
        if value is not None:
            told += [option, value]
    return told


def environment(user: User, home: Path) -> dict[str, str]:
    """The environment of a part; another user has its own home, and little of root's, which may hold secrets."""
    if user.number == os.geteuid():
        return dict(os.environ)
    passed = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {**passed, "HOME": str(home), "USER": user.name, "LOGNAME": user.name}
