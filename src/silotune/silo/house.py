"""A silo's folder on a machine of its own: what it is, what it allows, and who may read what.

    FOLDER/silo.toml            what the silo is (`settings.silo.SiloSettings`)
    FOLDER/policy.toml          what it allows (`settings.silo.Policy`); every key has a default
    FOLDER/approved.txt         hashes of the jobs that somebody approved
    FOLDER/paused               there while the silo is paused
    FOLDER/worker/memory/       what it remembers, its key too
    FOLDER/worker/ledger.jsonl  everything that left it, and what was turned away
    FOLDER/worker/pending/      jobs that nobody has approved yet
    FOLDER/carrier/             the carrier's own files, the node's key too
    FOLDER/meet/worker          the socket where the two meet

With two users the files on top are root's, and the worker may read them; `worker/` is the worker's alone, `carrier/`
the carrier's.
"""

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from silotune.data.read.reading import Reading
from silotune.data.silos.sources import SiloConfig, find_silos
from silotune.errors import InputError
from silotune.model.embedded import NAME
from silotune.recipe.checking import checked
from silotune.recipe.reading import parsed
from silotune.settings.silo import Policy, SiloSettings

SETTINGS, POLICY, APPROVED, PAUSED = "silo.toml", "policy.toml", "approved.txt", "paused"
OWN, MEET, CARRIER = "worker", "meet", "carrier"
"""Folders below the silo's: what the worker writes, where the socket lies, and what the carrier writes."""
SOCKET, NODE_KEY, PENDING = "worker", "node.key", "pending"
KEYS = "docs/silo.md lists every key"


@dataclass(frozen=True)
class User:
    """A user of this machine."""

    name: str
    number: int
    group: int


@dataclass(frozen=True)
class House:
    """A silo's folder, read and checked."""

    folder: Path
    silo: SiloSettings
    policy: Policy

    @property
    def socket(self) -> Path:
        """Where worker and carrier meet."""
        return self.folder / MEET / SOCKET

    @property
    def own(self) -> Path:
        """What the worker writes."""
        return self.folder / OWN

    @property
    def carrier_folder(self) -> Path:
        """What the carrier writes."""
        return self.folder / CARRIER

    @property
    def ruled(self) -> Sequence[Path]:
        """What says what the silo is and allows: whoever runs it writes these, and the worker reads them."""
        named = (self.folder / name for name in (SETTINGS, POLICY, APPROVED, PAUSED))
        return [place for place in named if place.exists()]

    @property
    def private(self) -> Sequence[Path]:
        """What the carrier must not be able to read."""
        files = self.config().files
        text = map(Path, (self.silo.data, *files.train, *files.test))
        places = [*text, Path(self.silo.memory), Path(self.silo.ledger), self.own, *self.ruled]
        return [place for place in places if place.exists()]

    @property
    def needed(self) -> Sequence[Path]:
        """What the worker must be able to read."""
        base = Path(self.silo.base) if self.silo.base else None
        weights = [base, *base.iterdir()] if base and base.is_dir() else [base] if base and base.exists() else []
        return [*self.private, *weights]

    def config(self) -> SiloConfig:
        """What the worker holds.

        Raises:
            InputError: it cannot be used.
        """
        silo, policy = self.silo, self.policy
        found = find_silos(silo.data)
        if len(found) != 1:
            raise InputError(f"{self.folder / SETTINGS}: data: must be one silo's, and {silo.data} holds {len(found)}.")
        return SiloConfig(
            files=replace(found[0], name=silo.name),
            base=silo.base,
            holdout=silo.holdout,
            reading=Reading(tuple(sorted(silo.fields.items())), silo.text_rows),
            drop_leaks=silo.drop_leaks,
            device=silo.device,
            dtype=silo.dtype,
            keep=silo.keep,
            keep_mib=silo.keep_mib,
            threads=silo.threads or 0,
            min_rows=policy.min_rows,
            min_steps=policy.min_steps,
            losses=policy.losses,
            ledger=Path(silo.ledger),
            memory=Path(silo.memory),
            isolation=self.isolation(),
            own_machine=True,
        )

    def isolation(self) -> Literal["users", "none"]:
        """Whether worker and carrier are different users."""
        house = self.silo.house
        return "users" if house.worker and house.carrier and house.worker != house.carrier else "none"

    def users(self) -> tuple[User, User]:
        """The users of worker and carrier.

        Raises:
            InputError: one of them is not on this machine, or they are one and the policy asks for two.
        """
        own = User(pwd.getpwuid(os.geteuid()).pw_name, os.geteuid(), os.getegid())
        house = self.silo.house
        worker, carrier = (user(name) if name else own for name in (house.worker, house.carrier))
        if worker.number == carrier.number and self.policy.isolation == "users":
            raise InputError(
                f"{self.folder / POLICY}: isolation = \"users\", but worker and carrier are both {worker.name!r} here: "
                "whatever a server sends to the carrier could read this silo's text. Name two users in [house] of "
                f"{SETTINGS} and start as root, or say isolation = \"none\" in the policy."
            )  # fmt: skip
        if 0 in (worker.number, carrier.number) and self.policy.isolation == "users":
            raise InputError(f"{self.folder / SETTINGS}: neither worker nor carrier may be root.")
        return worker, carrier


def require_startable(house: House) -> None:
    """Refuse to start parts as users that this process cannot become.

    Raises:
        InputError: saying what to do.
    """
    own, numbers = os.geteuid(), {one.number for one in house.users()}
    if own != 0 and numbers != {own}:
        raise InputError(f"{house.folder / SETTINGS}: only root can start parts as the users of [house].")


def open_house(folder: Path) -> House:
    """Read a silo's folder.

    Raises:
        InputError: it is none, or a file in it holds what cannot be used.
    """
    place = folder.resolve()
    if not (place / SETTINGS).exists():
        raise InputError(f"{folder}: not a silo's folder, for it holds no {SETTINGS}.")
    silo = checked(SiloSettings, parsed(place / SETTINGS), str(place / SETTINGS), KEYS)
    given = parsed(place / POLICY) if (place / POLICY).exists() else {}
    policy, whole = checked(Policy, given, str(place / POLICY), KEYS), _absolute(silo, place)
    if whole.base is not None and whole.base != NAME and not Path(whole.base).exists():
        raise InputError(
            f"{place / SETTINGS}: base: {whole.base}: there is no such folder or GGUF file. Fetch the model first: the "
            "worker has no network."
        )
    return House(place, whole, policy)


def _absolute(silo: SiloSettings, folder: Path) -> SiloSettings:
    """Paths counted from the silo's folder."""

    def whole(path: str) -> str:
        return str(folder / Path(path).expanduser())

    changed: dict[str, object] = {key: whole(getattr(silo, key)) for key in ("data", "memory", "ledger")}
    if silo.base is not None and (folder / silo.base).exists():
        changed["base"] = whole(silo.base)
    link = silo.superlink
    certificates, key = (whole(path) if path is not None else None for path in (link.certificates, link.key))
    changed["superlink"] = link.model_copy(update={"certificates": certificates, "key": key})
    return silo.model_copy(update=changed)


def user(name: str) -> User:
    """A user of this machine by name.

    Raises:
        InputError: there is none.
    """
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise InputError(f"there is no user {name!r} on this machine: useradd --system {name}") from None
    return User(found.pw_name, found.pw_uid, found.pw_gid)


def can(who: User, how: Literal["read", "write"], places: Sequence[Path]) -> list[Path]:
    """Those of some files and folders that a user can read, or write, tried as that user.

    Raises:
        InputError: that cannot be tried here.
    """
    found = []
    for place in places:
        try:
            done = subprocess.run(
                ["test", f"-{how[0]}", str(place)], user=who.number, group=who.group, extra_groups=[], check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise InputError(f"what user {who.name} can {how} cannot be tried here ({error}).") from None
        if done.returncode == 0:
            found.append(place)
    return found
