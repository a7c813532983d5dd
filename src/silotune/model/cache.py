"""Where silotune keeps what it has fetched or converted, and how a folder gets there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock


def home() -> Path:
    """The cache folder: `SILOTUNE_HOME` if set, else the platform's folder for caches."""
    configured = os.environ.get("SILOTUNE_HOME")
    return Path(configured).expanduser().resolve() if configured else platformdirs.user_cache_path("silotune")


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return the cached folder `name`, built by `build(folder)` if it is not there.

    Safe when several processes start at once (one builds, the others wait) and when one is killed in the middle:
    the folder takes its name only when it is whole.
    """
    target = home() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                build(unfinished)
                unfinished.rename(target)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return target
