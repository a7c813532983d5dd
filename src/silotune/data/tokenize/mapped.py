"""Arrays in files, mapped into memory without a descriptor kept open.

`numpy.memmap` keeps one descriptor per array for as long as the array lives. A process may hold 1,024 by default on
Linux, which a federation of some twenty silos with a dozen arrays for each split would have used up. A file that is
larger than the memory that may be mapped writable is mapped by NumPy all the same: of such there are few.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def mapped(path: Path) -> NDArray[Any]:
    """The array of an `.npy` file, read-only; only the pages that are read take up memory."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    return _bytes(path)[start:].view(dtype).reshape(shape)


def mapped_raw(path: Path, dtype: DTypeLike) -> NDArray[Any]:
    """The one-dimensional array of a file that holds nothing else, read-only; an empty file is an empty array."""
    return _bytes(path).view(dtype)


def _bytes(path: Path) -> NDArray[np.uint8]:
    import torch

    size = path.stat().st_size
    if not size:  # which cannot be mapped
        return np.zeros(0, np.uint8)
    try:
        held: NDArray[np.uint8] = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    except RuntimeError:  # its mapping counts as memory that may be written to, and may be more than there is
        return np.memmap(path, np.uint8, "r")
    held.flags.writeable = False
    return held
