"""Where silotune keeps what it has fetched, converted or worked out, whole or not at all."""

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock

from silotune.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""What a disk answers that takes nothing more."""
UNUSED_DAYS = 30
"""What `kept` has built goes when it has not been used for so long."""


def home() -> Path:
    """The cache folder: `SILOTUNE_HOME` if set, else the platform's folder for caches.

    Raises:
        InputError: `SILOTUNE_HOME` begins with `~` and a name that is nobody's, or is a link to itself.
    """
    configured = os.environ.get("SILOTUNE_HOME")
    try:
        return Path(configured).expanduser().resolve() if configured else platformdirs.user_cache_path("silotune")
    except (RuntimeError, OSError):
        raise InputError("SILOTUNE_HOME names no folder that there can be. Set it to a folder for the cache.") from None


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return the cached folder `name`, built by `build(folder)` if it is not there.

    Safe when several processes start at once (one builds, the others wait) and when one is killed in the middle:
    the folder takes its name only when it is whole, and the next build removes what the killed one left.

    Raises:
        InputError: the cache cannot be written.
    """
    target = home() / name
    with _told(target.parent):
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                _remove_leftovers(target)
                unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
                try:
                    build(unfinished)
                    unfinished.rename(target)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _remove_leftovers(target: Path) -> None:
    """Remove the unfinished folders of builders that were killed: whoever holds the lock is the only builder."""
    unfinished = re.compile(rf"\.{re.escape(target.name)}-[a-z0-9_]{{8}}")  # as `tempfile` names them
    for entry in target.parent.iterdir():
        if unfinished.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _told(folder: Path, all_ours: bool = False) -> Iterator[None]:
    """Turn what goes wrong with a folder of the cache into a message; what else a build fails of passes."""
    try:
        yield
    except OSError as error:
        ours = str(error.filename or "").startswith(str(home())) or error.errno in FULL
        if not (ours or all_ours):
            raise
        reason = error.strerror or error  # numpy gives no number
        raise InputError(
            f"{folder}: the cache cannot be written ({reason}). Make room, give it the rights it needs, or set "
            "SILOTUNE_HOME to another folder."
        ) from None


def kept(room: str, key: str, build: Callable[[Path], None]) -> Path:
    """Like `build_once` for what is worked out of a silo's own text: readable by its user only, and not for ever.

    Args:
        room: the folder of its kind.
        key: changes with everything that the result depends on.
        build: writes the result to a folder.

    Raises:
        InputError: the cache cannot be written.
    """
    folder = home() / room
    with _told(folder, all_ours=True):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        built = not (folder / key).is_dir()
        found = build_once(f"{room}/{key}", build)
        os.utime(found)
        if built:
            _sweep(folder)
    return found


def _sweep(folder: Path) -> None:
    """Remove what has not been used for `UNUSED_DAYS`."""
    oldest = time.time() - UNUSED_DAYS * 86_400
    for entry in folder.iterdir():
        try:
            unused = entry.stat().st_mtime < oldest
        except FileNotFoundError:  # another process sweeps too
            continue
        if unused and entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif unused:
            entry.unlink(missing_ok=True)
