"""Worker and carrier, started as their users, watched, and started again when they end.

As root, each part runs under its own user with no capability and no way to gain one; the worker has a network of its
own without any way out. Otherwise both run as whoever starts them, if the policy says `isolation = "none"`.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from silotune.errors import InputError
from silotune.silo.house import MEET, POLICY, SETTINGS, House, User, can, require_startable

Tell = Callable[[str], None]

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until a part that has ended is started again: at first, and at most."""
SOUND = 60.0
"""Seconds after which a part is taken to run well."""
PASSED = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "SILOTUNE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS",
          "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy",
          "SSL_CERT_FILE", "SSL_CERT_DIR")  # fmt: skip
"""Names of the environment that parts under other users are given."""
LAST_WORDS = 20.0
"""Seconds that a part has to end when it is asked to."""


@dataclass
class Part:
    """A process that is kept running."""

    name: str
    command: list[str]
    folder: Path
    """Where it works: its user's own."""
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    began: float = 0.0
    pause: float = FIRST_PAUSE
    """Until it is started again, should it end soon."""
    again: float = field(default=0.0)
    """When to start it, on the monotonic clock."""

    def look(self, tell: Tell) -> None:
        """Start it if it is time, and take note of its end."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.again:
                self.began = now
                self.process = subprocess.Popen(
                    self.command, cwd=self.folder, env=self.environment, start_new_session=True, umask=0o077,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )  # fmt: skip
                threading.Thread(target=_shown, args=(self.process,), daemon=True).start()
            return
        code = self.process.poll()
        if code is None:
            return
        self.end()
        pause = FIRST_PAUSE if now - self.began > SOUND else self.pause
        self.process, self.again, self.pause = None, now + pause, min(2 * pause, LONGEST_PAUSE)
        tell(f"the {self.name} has ended (code {code}), and is started again in {pause:g} s")

    def end(self) -> None:
        """End it, and all that it started."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LAST_WORDS)
        with suppress(ProcessLookupError):  # what it started may have stayed
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _shown(process: "subprocess.Popen[bytes]") -> None:
    """Copy what a part says: this process's own streams may be a terminal, and are not for other users to have."""
    assert process.stdout is not None
    for line in process.stdout:
        with suppress(OSError, ValueError):
            sys.stderr.write(line.decode("utf-8", "replace"))
            sys.stderr.flush()


def up(house: House, stop: threading.Event, tell: Tell) -> None:
    """Keep worker and carrier of a silo running until `stop` is set.

    Raises:
        InputError: they cannot be kept apart as the policy asks, or something that they need cannot be read.
    """
    worker, carrier = house.users()
    require_startable(house)
    apart = worker.number != carrier.number
    prepare(house, worker, carrier)
    if apart:
        require_apart(house, worker, carrier)
    else:
        tell(
            'isolation = "none": whatever runs as this user, an app that a server sends too, can read this silo\'s text'
        )
    fetch = [*_as(worker, network=True), *_program("worker", house.folder, "--fetch")]
    done = subprocess.run(
        fetch, cwd=house.folder, env=_environment(worker, house.folder), check=False, umask=0o077, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    if done.returncode:
        raise InputError(f"the worker cannot start: {done.stdout.strip()[-2000:]}")
    parts = [
        Part("worker", [*_as(worker, network=False), *_program("worker", house.folder)],
             house.folder, _environment(worker, house.folder)),
        Part("carrier", [*_as(carrier, network=True), *_program("carrier", house.carrier_folder, *_carried(house))],
             house.carrier_folder, _environment(carrier, house.carrier_folder)),
    ]  # fmt: skip
    tell(f"worker as {worker.name}, carrier as {carrier.name}, on the way to {house.silo.superlink.address}")
    try:
        while not stop.wait(0.2):
            for part in parts:
                part.look(tell)
    finally:
        for part in reversed(parts):
            part.end()


def prepare(house: House, worker: User, carrier: User) -> None:
    """Make the folders where the two meet and work, and give each its own.

    Raises:
        InputError: that is not possible here.
    """
    meet, own = house.folder / MEET, house.carrier_folder
    root = os.geteuid() == 0
    try:
        for folder in (meet, own):
            folder.mkdir(mode=0o700, exist_ok=True)
        if root:
            for place in (house.folder, house.folder / SETTINGS, house.folder / POLICY):
                if place.exists():
                    _give(place, worker.number, worker.group, 0o711 if place == house.folder else 0o600)
            _give(meet, worker.number, carrier.group, 0o750)
            _give(own, carrier.number, carrier.group, 0o700)
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


def _as(user: User, network: bool) -> list[str]:
    """What comes before a command that is to run as a user; nothing where this process is that user."""
    if user.number == os.geteuid():
        return []
    for tool in ("setpriv", "unshare"):
        if shutil.which(tool) is None:
            raise InputError(f"{tool} is not on this machine: two users need it, and it comes with util-linux.")
    alone = [] if network else ["unshare", "--net", "--"]
    return [*alone, "setpriv", f"--reuid={user.number}", f"--regid={user.group}", "--clear-groups", "--no-new-privs",
            "--inh-caps=-all", "--bounding-set=-all", "--pdeathsig=TERM", "--"]  # fmt: skip


def _program(part: str, *arguments: object) -> list[str]:
    # -P: no module is looked for in the folder where it starts.
    return [sys.executable, "-P", "-m", "silotune.cli", "silo", part, *map(str, arguments)]


def _carried(house: House) -> list[str]:
    """What the carrier is told: nothing that is the worker's."""
    link = house.silo.superlink
    told = ["--socket", str(house.socket), "--superlink", link.address, "--port", str(house.silo.house.port)]
    for option, value in (("--certificates", link.certificates), ("--key", link.key)):
        if value is not None:
            told += [option, value]
    return told


def _environment(user: User, home: Path) -> dict[str, str]:
    """The environment of a part; another user has its own home, and little of root's, which may hold secrets."""
    if user.number == os.geteuid():
        return dict(os.environ)
    passed = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {**passed, "HOME": str(home), "USER": user.name, "LOGNAME": user.name}
