"""Units of systemd, so that a consortium's server and a silo come up with their machines and are kept apart."""

import shlex
import sys
from pathlib import Path

from silotune.consortium.folder import Consortium
from silotune.errors import InputError

SERVER = """\
# Copy to /etc/systemd/system/, then: systemctl daemon-reload && systemctl enable --now {name}
[Unit]
Description=silotune consortium {consortium}
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={command}
Restart=always
RestartSec=5
User={user}
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
LockPersonality=yes
CapabilityBoundingSet=
ReadWritePaths={folder}

[Install]
WantedBy=multi-user.target
"""


def command(*arguments: str) -> str:
    """A command of silotune's as a unit has it, with this very Python."""
    return shlex.join([sys.executable, "-P", "-m", "silotune.cli", *arguments])


def write_units(consortium: Consortium) -> Path:
    """Write the unit of a consortium's server into its folder; returns its path.

    Raises:
        InputError: it cannot be written.
    """
    import getpass

    name = f"silotune-consortium-{consortium.settings.name}.service"
    text = SERVER.format(
        name=name, consortium=consortium.settings.name, folder=consortium.folder, user=getpass.getuser(),
        command=command("consortium", "up", str(consortium.folder)),
    )  # fmt: skip
    place = consortium.folder / "units" / name
    try:
        place.parent.mkdir(mode=0o700, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror}).") from None
    return place
