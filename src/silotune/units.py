"""Units of systemd: what runs at a server or at a silo comes up with its machine, and can do no more than it must."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from silotune.errors import InputError
from silotune.supervision import program

FOLDER = "units"
"""Below the folder of a consortium or a silo."""
UNIT = """\
# Copy to /etc/systemd/system/, then: systemctl daemon-reload && systemctl enable --now {name}
[Unit]
Description={description}
{order}StartLimitIntervalSec=0

[Service]
{first}ExecStart={command}
Restart=always
RestartSec=5
User={user}
{folder}UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictSUIDSGID=yes
LockPersonality=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
PrivateTmp=yes
{more}ReadWritePaths={writes}

[Install]
WantedBy=multi-user.target
"""
NETWORK = ("After=network-online.target", "Wants=network-online.target")


@dataclass(frozen=True)
class Unit:
    """A service."""

    name: str
    """Of its file, without `.service`."""
    description: str
    arguments: Sequence[object]
    """Of silotune."""
    user: str
    writes: Sequence[Path]
    """Where it may write; they are there when it starts."""
    first: Sequence[object] = ()
    """Arguments of what runs before it with all of root's rights, if anything does."""
    order: Sequence[str] = NETWORK
    """Lines about what comes before it."""
    more: Sequence[str] = ()
    """Lines that confine it further."""
    home: Path | None = None
    """The folder that it works in and takes for its user's own; None: the user's."""

    def text(self) -> str:
        """What its file holds."""
        folder = [f"WorkingDirectory={_plain(self.home)}", f"Environment={_command([f'HOME={self.home}'])}"]
        return UNIT.format(
            name=self.name, description=_plain(self.description), user=self.user, order=_lines(self.order),
            first=_lines([f"ExecStartPre=+{_command(program(*self.first))}"] if self.first else ()),
            command=_command(program(*self.arguments)), folder=_lines(folder if self.home else ()),
            more=_lines(self.more), writes=paths(self.writes),
        )  # fmt: skip


def paths(places: Iterable[Path], sign: str = "") -> str:
    """Paths as a line of a unit has them; with the sign `-`, they need not be there."""
    return " ".join(f'"{sign}{_plain(place)}"' for place in places)


def _command(words: Iterable[str]) -> str:
    return _plain(shlex.join(words)).replace("$", "$$")


def _plain(text: object) -> str:
    return str(text).replace("%", "%%")  # systemd puts something in place of a % and what follows


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def write(units: Iterable[Unit], folder: Path) -> list[Path]:
    """Write units into the folder `units` below one; returns their paths.

    Raises:
        InputError: they cannot be written.
    """
    below, written = folder / FOLDER, []
    try:
        below.mkdir(mode=0o700, exist_ok=True)
        for unit in units:
            place = below / f"{unit.name}.service"
            place.write_text(unit.text(), encoding="utf-8")
            written.append(place)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written ({error.strerror}).") from None
    return written
