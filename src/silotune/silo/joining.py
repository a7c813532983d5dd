"""A silo comes into a consortium: it draws its keys here, sends their public halves, and its folder is made."""

import hashlib
import json
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx
import tomli_w
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from silotune import atomic
from silotune.errors import FederationError, InputError
from silotune.silo.house import CARRIER, NODE_KEY, OWN, POLICY, SETTINGS, House, open_house
from silotune.silo.identity import farewell, public_key

PATIENCE = 30.0
"""Seconds to wait for a consortium's answer."""
MOST_INVITATION = 64 << 10
HELLO, JOIN, KNOWN, LEAVE = (f"/silotune/v1/{name}" for name in ("hello", "join", "known", "leave"))
"""What a consortium answers beside Flower's calls."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a coordinator may call a member: a folder and units of this machine are named so."""
POLICY_TEXT = """\
# What this silo allows. Whatever a job asks for beyond it is refused before anything is loaded, and nothing but the
# refusal leaves. A change takes effect when the silo is started again. Every key is in docs/silo.md.

{isolation}# "users": worker and carrier must be two users. "none": one user may do for both
approve = false           # true: somebody here says yes to each job, `silotune silo approve FOLDER`
losses = true             # whether losses over held-out rows may leave
min_rows = 8              # neither a loss nor an update may be of fewer rows
min_steps = 1             # an update has at least so many steps
max_rank = 64             # largest rank of an adapter: a larger one can hold more of the text
rounds_per_run = 1000
rounds_per_day = 1000
scores_per_day = 1000     # models that are scored on the held-out rows
min_silos = 2             # updates that a mean must be made of, as the job promises
# algorithms = ["fedavg"]
# codecs = ["float32", "bfloat16", "int8"]
# bases = ["0123456789abcdef0123456789abcdef"]
# targets = "attention"
"""


@dataclass(frozen=True)
class Invitation:
    """What a member is given by the coordinator, in a file of its own. The token is its only secret."""

    consortium: str
    """Its name."""
    name: str
    """Of the member."""
    address: str
    """HOST:PORT."""
    certificates: str
    """The CA's certificate, PEM."""
    token: str
    until: str
    """When it ends, ISO 8601."""


def read_invitation(place: Path) -> Invitation:
    """Read an invitation's file.

    Raises:
        InputError: it is none.
    """
    try:
        if place.stat().st_size > MOST_INVITATION:
            raise ValueError
        told = json.loads(place.read_text(encoding="utf-8"))
        found = Invitation(**told)
        if not all(isinstance(one, str) for one in told.values()) or not NAME.fullmatch(found.name):
            raise ValueError
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror}).") from None
    except (ValueError, TypeError):
        raise InputError(f"{place}: not an invitation. The coordinator makes one: silotune consortium invite") from None
    return found


def join(
    invitation: Path, data: Path, folder: Path, base: str | None = None, users: tuple[str, str] | None = None
) -> tuple[House, str]:
    """Come into a consortium: make the silo's folder, and show the token with the public halves of the silo's keys.

    Where the answer got lost the same command may be given again, as long as the invitation is open.

    Args:
        invitation: the file from the coordinator.
        data: the silo's text.
        folder: of the silo; it is made.
        base: the base model's place here, if it is not the embedded one.
        users: of worker and carrier; None: whoever starts the silo is both.

    Returns:
        The silo, and the fingerprint of its keys, to be compared with the coordinator's.

    Raises:
        InputError: the invitation, the text or the folder cannot be used, or the consortium refuses.
        FederationError: it does not answer.
    """
    invited = read_invitation(invitation)
    if (folder / SETTINGS).exists():
        house = open_house(folder)
        if house.silo.name != invited.name:
            raise InputError(f"{folder}: is the folder of silo {house.silo.name!r}; name another with --folder.")
    else:
        _write(folder, invited, data, base, users)
        house = open_house(folder)
    house.users()  # before the token is shown, for it works once
    # A key for each invitation: Flower takes none twice. It is the node's when the consortium has it.
    drawn = folder / CARRIER / f".{NODE_KEY}-{hashlib.sha256(invited.token.encode()).hexdigest()[:12]}"
    node_key, silo_key = _node_key(drawn), public_key(Path(house.silo.memory))
    told = ask(
        invited.address, JOIN, folder / "ca.pem",
        {"token": invited.token, "name": invited.name, "node_key": node_key, "silo_key": silo_key},
    )  # fmt: skip
    try:
        drawn.replace(folder / CARRIER / NODE_KEY)
    except OSError as error:
        raise InputError(f"{folder / CARRIER / NODE_KEY}: cannot be written ({error.strerror}).") from None
    return house, str(told["fingerprint"])


def _write(folder: Path, invited: Invitation, data: Path, base: str | None, users: tuple[str, str] | None) -> None:
    """Make a silo's folder."""
    if not data.exists():
        raise InputError(f"{data}: there is no text. Name the silo's folder, or its NAME.train.* file, with --data.")
    house = {"worker": users[0], "carrier": users[1]} if users else {}
    settings: dict[str, object] = {"name": invited.name, "data": str(data.resolve())}
    if base is not None:
        settings["base"] = str(Path(base).resolve()) if Path(base).exists() else base
    settings["superlink"] = {"address": invited.address, "certificates": "ca.pem", "key": f"{CARRIER}/{NODE_KEY}"}
    if house:
        settings["house"] = house
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for below in (OWN, CARRIER):
            (folder / below).mkdir(mode=0o700, exist_ok=True)
        (folder / "ca.pem").write_text(invited.certificates, encoding="ascii")
        (folder / "ca.pem").chmod(0o644)
        if not (folder / POLICY).exists():
            isolation = "isolation = " + json.dumps("users" if users else "none")
            text = POLICY_TEXT.format(isolation=f"{isolation:26}")
            atomic.write_bytes(folder / POLICY, text.encode(), private=True)
        atomic.write_bytes(folder / SETTINGS, tomli_w.dumps(settings).encode(), private=True)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be written ({error.strerror}).") from None


def _node_key(place: Path) -> str:
    """The public half of a node's key (PEM); it is drawn when there is none yet."""
    try:
        if not place.exists():
            drawn = ec.generate_private_key(ec.SECP384R1())
            # As OpenSSH writes it: Flower's SuperNode reads keys in that form.
            atomic.write_bytes(place, drawn.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ), private=True)  # fmt: skip
        return public_half(place)
    except OSError as error:
        raise InputError(f"{place}: cannot be read or written ({error.strerror}).") from None


def public_half(place: Path) -> str:
    """The public half (PEM) of a node's key.

    Raises:
        OSError: it cannot be read.
        InputError: it is no key.
    """
    try:
        found = serialization.load_ssh_private_key(place.read_bytes(), None)
    except (ValueError, TypeError):
        raise InputError(f"{place}: not the key of a node.") from None
    return found.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()  # fmt: skip


def ask(
    address: str, path: str, certificates: Path | None, told: Mapping[str, str] | None = None
) -> Mapping[str, object]:
    """Ask a consortium's gateway: with `told` by POST, else by GET.

    Raises:
        InputError: it refuses, or the certificates cannot be read.
        FederationError: it does not answer.
    """
    try:
        verify = ssl.create_default_context(cafile=str(certificates) if certificates else None)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{certificates}: not the certificates of a CA ({error.strerror or 'not PEM'}).") from None
    try:
        with httpx.Client(verify=verify, timeout=PATIENCE) as client:
            url = f"https://{address}{path}"
            answer = client.get(url) if told is None else client.post(url, json=dict(told))
            found = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise FederationError(f"{address}: {reason(error)}") from None
    if not isinstance(found, dict) or answer.status_code >= 500 or answer.status_code == 404:
        raise FederationError(
            f"{address}: what answers there is no consortium, or it cannot now ({answer.status_code})."
        )
    if answer.status_code >= 400:
        raise InputError(f"{address} refuses: {str(found.get('detail'))[:300]}")
    return cast(Mapping[str, object], found)


def leave(house: House) -> None:
    """Tell the consortium that this silo leaves, signed with its key, and delete the node's key.

    Raises:
        InputError: the consortium refuses, or the silo's key cannot be read.
        FederationError: it does not answer.
    """
    link, now = house.silo.superlink, str(int(time.time()))
    told = {"name": house.silo.name, "time": now}
    proof = farewell(Path(house.silo.memory), f"{house.silo.name}\n{now}")
    certificates = Path(link.certificates) if link.certificates else None
    ask(link.address, LEAVE, certificates, {**told, "proof": proof})
    if link.key is not None:
        Path(link.key).unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """Why a server could not be asked, in words, with what to do."""
    text = str(error)
    for sign, words in (
        ("CERTIFICATE_VERIFY_FAILED", "its certificate is not signed by the invitation's CA, is not for this name, or "
         "does not hold now: check the address and this machine's clock, and ask the coordinator"),
        ("Name or service not known", "there is no machine of that name: check the address and this machine's DNS"),
        ("nodename nor servname", "there is no machine of that name: check the address and this machine's DNS"),
        ("refused", "nothing listens there: is `silotune consortium up` running, and is the port right?"),
        ("timed out", "it does not answer: does a firewall stand between?"),
        ("WRONG_VERSION_NUMBER", "what answers there does not speak TLS: is the port right?"),
    ):  # fmt: skip
        if sign in text:
            return f"{words} ({type(error).__name__})"
    return f"it cannot be reached ({type(error).__name__})"


def clock_difference(address: str, certificates: Path | None) -> float:
    """By how many seconds this machine's clock is ahead of the consortium's.

    Raises:
        InputError, FederationError: it cannot be asked.
    """
    began = time.time()
    told = ask(address, HELLO, certificates)
    return (began + time.time()) / 2 - float(cast(float, told["time"]))
