"""Who may take part: invitations that are open, and members with their keys.

An invitation is a file for one member: the address, the CA's certificate, and a token that works once and not for
long. The token is kept here as its hash. A member comes in with the public halves of two keys that it drew itself: the
node's, by which Flower lets it in, and the silo's, by which runs know it; a name belongs to them until it is expelled.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from filelock import FileLock

from silotune import atomic
from silotune.consortium.folder import CA, MEMBERS, Consortium
from silotune.errors import AdmissionError, InputError
from silotune.silo.joining import NAME, Invitation

MOST_OPEN = 1000
"""Invitations and members that a consortium keeps."""


@dataclass(frozen=True)
class Open:
    """An invitation as the coordinator keeps it."""

    name: str
    token: str
    """Its SHA-256, in hexadecimal."""
    until: str


@dataclass(frozen=True)
class Member:
    """A member of a consortium."""

    name: str
    node_key: str
    """The public key of its node, PEM."""
    silo_key: str
    """The public key by which runs know its silo, in hexadecimal."""
    number: int
    """The number that Flower gave its node."""
    joined: str
    """ISO 8601."""
    token: str
    """The SHA-256 of the token with which it came in: it may ask again, if the answer got lost."""


@dataclass(frozen=True)
class Book:
    """Members and open invitations, by name."""

    members: Mapping[str, Member] = field(default_factory=dict)
    invited: Mapping[str, Open] = field(default_factory=dict)


def fingerprint(node_key: str, silo_key: str) -> str:
    """What two people compare by telephone: 32 hexadecimal digits over both public keys, in groups of four."""
    digest = hashlib.sha256(f"{node_key.strip()}\n{silo_key}\n".encode()).hexdigest()[:32]
    return " ".join(digest[start : start + 4] for start in range(0, 32, 4))


def read(consortium: Consortium) -> Book:
    """The members and invitations of a consortium.

    Raises:
        InputError: they cannot be read.
    """
    place = consortium.folder / MEMBERS
    try:
        told = json.loads(place.read_text(encoding="utf-8"))
        return Book({one["name"]: Member(**one) for one in told["members"]},
                    {one["name"]: Open(**one) for one in told["invited"]})  # fmt: skip
    except FileNotFoundError:
        return Book()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place}: cannot be read ({type(error).__name__}). Put a copy of it back.") from None


def name_of(consortium: Consortium, number: int) -> str:
    """The name of the member whose node has a number; empty where nobody knows."""
    with suppress(InputError):  # a run does not end because of a name
        return next((one.name for one in read(consortium).members.values() if one.number == number), "")
    return ""


@contextmanager
def _changing(consortium: Consortium) -> Iterator[list[Book]]:
    """Read the book, and write what the block has put in its place; one at a time."""
    with FileLock(consortium.folder / ".members.lock", mode=0o600):
        held = [read(consortium)]
        before = held[0]
        yield held
        if held[0] != before:
            told = {"members": [asdict(one) for one in held[0].members.values()],
                    "invited": [asdict(one) for one in held[0].invited.values()]}  # fmt: skip
            atomic.write_bytes(consortium.folder / MEMBERS, json.dumps(told, indent=1).encode(), private=True)


def invite(consortium: Consortium, name: str, hours: float) -> Invitation:
    """Open an invitation; one of that name that is open already ends.

    Raises:
        InputError: the name cannot be one, or is a member's.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name[:80]!r}: a member's name has up to 64 letters, digits, '.', '_' and '-'.")
    token, until = secrets.token_urlsafe(32), (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="seconds")
    with _changing(consortium) as held:
        if name in held[0].members:
            raise InputError(f"{name} is a member already. To let it in with other keys: silotune consortium expel")
        if len(held[0].members) + len(held[0].invited) >= MOST_OPEN:
            raise InputError(f"there are {MOST_OPEN} members and invitations already.")
        opened = Open(name, hashlib.sha256(token.encode()).hexdigest(), until)
        held[0] = replace(held[0], invited={**held[0].invited, name: opened})
    certificates = (consortium.folder / CA).read_text(encoding="ascii")
    return Invitation(consortium.settings.name, name, consortium.address, certificates, token, until)


def admit(consortium: Consortium, token: str, name: str, node_key: str, silo_key: str) -> Member:
    """Take in whoever shows an invitation's token, with the public halves of its keys.

    Raises:
        AdmissionError: the token is not that of an open invitation of this name, or a key is none.
        FederationError: the SuperLink does not answer.
    """
    _require_keys(node_key, silo_key)
    hashed = hashlib.sha256(token.encode()).hexdigest()
    with _changing(consortium) as held:
        book = held[0]
        before = book.members.get(name)
        if (
            before is not None
            and hmac.compare_digest(before.token, hashed)
            and (before.node_key, before.silo_key) == (node_key, silo_key)
        ):
            return before
        opened = book.invited.get(name)
        known = opened is not None and hmac.compare_digest(opened.token, hashed)
        # One answer for all that is wrong with a token: it says nothing of who is invited.
        if opened is None or not known or datetime.fromisoformat(opened.until) < datetime.now(UTC):
            raise AdmissionError(
                "this invitation is not open: it was used, has ended, or is another's; ask for a new one"
            )
        if any(silo_key == one.silo_key or node_key == one.node_key for one in book.members.values()):
            raise AdmissionError("another member has that key")
        number = consortium.link.register(node_key.encode(), name)
        joined = datetime.now(UTC).isoformat(timespec="seconds")
        member = Member(name, node_key, silo_key, number, joined, hashed)
        left = {other: one for other, one in book.invited.items() if other != name}
        held[0] = Book({**book.members, name: member}, left)
    return member


def expel(consortium: Consortium, name: str) -> None:
    """Let a member in no more; an invitation of that name ends as well.

    Raises:
        InputError: there is neither.
        FederationError: the SuperLink does not answer.
    """
    with _changing(consortium) as held:
        book = held[0]
        if name not in book.members and name not in book.invited:
            raise InputError(
                f"{name[:80]}: neither a member nor invited; there are {', '.join(book.members) or 'none'}."
            )
        if name in book.members:
            number = book.members[name].number
            if any(node.number == number for node in consortium.link.nodes()):
                consortium.link.unregister(number)
        held[0] = Book({other: one for other, one in book.members.items() if other != name},
                       {other: one for other, one in book.invited.items() if other != name})  # fmt: skip


def _require_keys(node_key: str, silo_key: str) -> None:
    """Refuse what are no public keys."""
    try:
        found = serialization.load_pem_public_key(node_key.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, ec.EllipticCurvePublicKey) or not isinstance(found.curve, ec.SECP384R1):
        raise AdmissionError("the node's key is no public key on P-384")
    if not re.fullmatch("[0-9a-f]{64}", silo_key):
        raise AdmissionError("the silo's key has not 64 hexadecimal digits")


def require_new(place: Path) -> None:
    """Refuse to write where something is.

    Raises:
        InputError: there is a file of that name.
    """
    if place.exists():
        raise InputError(f"{place}: is there already. Remove it, or name another file with --out.")


def write_invitation(invitation: Invitation, place: Path) -> None:
    """Write an invitation to a new file, its owner's alone.

    Raises:
        InputError: there is a file of that name, or it cannot be written.
    """
    require_new(place)
    try:
        atomic.write_bytes(place, (json.dumps(asdict(invitation), indent=1) + "\n").encode(), private=True)
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror}).") from None
