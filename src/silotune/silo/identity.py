"""The key by which a silo is known for the length of a run: drawn on its own machine, which it never leaves.

A silo shows its public key when it joins, with its signature of the job, which names the run. A server takes a name for
that of the key that came with it first, or of the one that the recipe pins; so no other node can take a silo's name,
whatever Flower knows of the nodes. Ed25519: RFC 8032.
"""

import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from silotune import atomic
from silotune.errors import InputError
from silotune.silo.memory import KEY, writing

PURPOSE = b"silotune: a silo joins the run of this job\n"
LEAVING = b"silotune: a silo leaves its consortium\n"
"""Before what is signed, so that a signature means this and nothing else."""

SMALL_ORDER = frozenset(
    point[:62] + sign
    for point, signs in (
        ("01" + 62 * "0", ("00", "80")),
        ("00" + 62 * "0", ("00", "80")),
        ("ec" + 60 * "f" + "7f", ("7f", "ff")),
        ("ed" + 60 * "f" + "7f", ("7f", "ff")),
        ("ee" + 60 * "f" + "7f", ("7f", "ff")),
        ("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", ("05", "85")),
        ("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", ("7a", "fa")),
    )
    for sign in signs
)
"""Every encoding of the eight points of Curve25519's small subgroup, those that are not reduced among them."""


def public_key(root: Path) -> str:
    """The silo's public key in hexadecimal, 64 digits; the pair is drawn when there is none yet.

    Args:
        root: the folder of the silo's memory.

    Raises:
        InputError: it cannot be read or written.
    """
    return _private(root).public_key().public_bytes_raw().hex()


def proof(root: Path, job: str) -> str:
    """The silo's signature of a job in hexadecimal, 128 digits.

    Raises:
        InputError: its key cannot be read or written.
    """
    return _private(root).sign(PURPOSE + job.encode()).hex()


def farewell(root: Path, told: str) -> str:
    """The silo's signature of its wish to leave a consortium, in hexadecimal.

    Raises:
        InputError: its key cannot be read or written.
    """
    return _private(root).sign(LEAVING + told.encode()).hex()


def holds(key: str, signature: str, job: str, purpose: bytes = PURPOSE) -> bool:
    """Whether whoever holds a public key has signed a job, or a text for another purpose; not if either is none.

    Both must be written as they are here, digit for digit: a key is a name, and has one spelling. Points of small order
    are no keys, for one signature holds for every job.
    """
    if not re.fullmatch("[0-9a-f]{64}", key) or not re.fullmatch("[0-9a-f]{128}", signature) or key in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), purpose + job.encode())
    except (ValueError, InvalidSignature):
        return False
    return True


def _private(root: Path) -> Ed25519PrivateKey:
    path = root / KEY
    with writing(root):
        if not path.is_file():
            drawn = Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            atomic.write_bytes(path, drawn, private=True)
        try:
            found = serialization.load_pem_private_key(path.read_bytes(), None)
        except (ValueError, TypeError):
            found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise InputError(
            f"{path}: not the key of a silo. Delete it, and another is drawn; runs that go on refuse that."
        )
    return found
