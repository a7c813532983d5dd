"""Files that are whole or not there: written beside their place, then renamed into it."""

import os
import secrets
from pathlib import Path


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file (UTF-8) whole or not at all; one that is there is replaced.

    Args:
        path: of the file; its folder must be there.
        text: to write.
        durable: have it on the disk before it has its name, so that a crash of the machine cannot leave it empty.
    """
    unfinished = path.with_name(f".{path.name[:80]}-{secrets.token_hex(6)}")
    try:
        with unfinished.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Have a file or the names in a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
