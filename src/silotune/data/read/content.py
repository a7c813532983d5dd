"""Results that depend on what files hold: made once for a content, and kept in the cache."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from silotune import cache
from silotune.data.read.files import printable, require_file
from silotune.data.read.hub import identity
from silotune.data.read.reading import Reading
from silotune.errors import DataError
from silotune.settings import HUB

FORMAT = 3
"""Changes when the same content would be read, dealt out or looked through to another result."""


def kept(
    room: str, sources: Sequence[str], reading: Reading, depends: Sequence[object], build: Callable[[Path], None]
) -> Path:
    """The folder of a result, built once for a content of files.

    Args:
        room: the kind of result.
        sources: what is read.
        reading: how.
        depends: whatever else the result depends on.
        build: writes the result to a folder.

    Raises:
        DataError: a file was changed while it was read; nothing is kept then.
    """
    before = [stamp(source) for source in sources]  # before the key: what is hashed must be what is read
    key = content_key(sources, reading, *depends)

    def checked(folder: Path) -> None:
        build(folder)
        for source, was in zip(sources, before, strict=True):
            if stamp(source) != was:
                raise DataError(f"{printable(source)}: the file was changed while it was read. Start again.")

    return cache.kept(room, key, checked)


def content_key(sources: Sequence[str], reading: Reading, *more: object) -> str:
    """A digest of what files hold and how they are read, and of whatever else a result depends on."""
    digest = hashlib.blake2b(digest_size=20)
    for part in (FORMAT, reading, *more):
        digest.update(repr(part).encode() + b"\0")
    for source in sources:
        name = Path(source).name  # its ending says the format
        digest.update(f"{name}\0{_content(source, stamp(source))}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def stamp(source: str) -> tuple[int, ...]:
    """What changes when a file is written."""
    if source.startswith(HUB):
        return ()
    require_file(Path(source))
    status = Path(source).stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@functools.lru_cache(maxsize=4096)
def _content(source: str, _: tuple[int, ...]) -> str:
    if source.startswith(HUB):
        return identity(source)
    try:
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()
    except OSError as error:
        raise DataError(f"{printable(source)}: cannot be read ({error.strerror}).") from None
