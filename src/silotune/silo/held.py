"""The adapter that a silo has scored, kept until the next one, so that the round that starts from it need not send it.

    FOLDER/RUN/adapter-SHA256.safetensors      as it came, in its codec

It is named by the digest of its array, and checked against it like anything that comes over the wire. The virtual
silos of a simulation have one folder, and keep one copy between them.
"""

import logging
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from silotune import atomic
from silotune.errors import AdmissionError, InputError
from silotune.silo.memory import writing
from silotune.wire.manifest import Manifest

logger = logging.getLogger(__name__)


def hold(root: Path, run: str, array: NDArray[np.generic], manifest: Manifest) -> bool:
    """Keep an adapter in place of the one before, of whatever run that was.

    Args:
        root: of the silo's memory.
        run: the run's identity.
        array: the adapter as it travelled.
        manifest: that came with it; the two were found to agree.

    Returns:
        Whether it is kept. Where it cannot be, the server sends it again, and nothing else is lost.
    """
    path = _path(root, run, manifest.sha256)
    try:
        with writing(root):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.is_file():
                atomic.write_bytes(path, save({"array": array}, {"manifest": manifest.to_json()}), durable=False)
            for other in root.glob("*/adapter-*.safetensors"):
                if other != path:
                    other.unlink(missing_ok=True)
        return True
    except (InputError, OSError) as error:
        logger.warning("the adapter is not kept, and will be sent again: %s", error)
        return False


def held(root: Path, run: str, digest: str) -> tuple[NDArray[np.generic], Manifest] | None:
    """The adapter of a digest as it travelled, and its manifest; None if it is not kept, or not whole."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        return None
    try:
        with safe_open(_path(root, run, digest), "numpy") as file:
            manifest = Manifest.from_json((file.metadata() or {})["manifest"])
            return file.get_tensor("array"), manifest
    except (OSError, SafetensorError, KeyError, AdmissionError):
        return None


def _path(root: Path, run: str, digest: str) -> Path:
    return root / run / f"adapter-{digest}.safetensors"
