"""Files that are whole or not there: written beside their place, then renamed into it."""

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file (UTF-8) whole or not at all, as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), durable=durable)


def write_bytes(path: Path, data: bytes, *, durable: bool = True, private: bool = False) -> None:
    """Write a file whole or not at all; one that is there is replaced.

    Args:
        path: of the file; its folder must be there.
        data: to write.
        durable: have it on the disk before it has its name, so that a crash of the machine cannot leave it empty.
        private: at no time may anybody but the user read it.
    """
    unfinished = path.with_name(f".{path.name[:80]}-{secrets.token_hex(6)}")
    try:
        unfinished.touch(0o600 if private else 0o666, exist_ok=False)
        with unfinished.open("wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that takes its name when the block ends well, and goes with all that is in it otherwise.

    Args:
        target: is not there yet, or empty; the folders above it are made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name[:80]}-", dir=target.parent))
    try:
        with tensor_errors():
            yield unfinished
        for path in (unfinished, *unfinished.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def tensor_errors() -> Iterator[None]:
    """Turn safetensors' own error for a file that cannot be written into an `OSError` with its number."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def sync(path: Path) -> None:
    """Have a file or the names in a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
