"""What a silo remembers from round to round, in a folder of its own that outlasts processes.

    FOLDER/memory.json                         says what the folder is, so that nothing else is ever deleted
    FOLDER/RUN/SILO/round-0003.safetensors     what the silo remembered after its part in round 3

A round's memory is a function of the message, the silo's rows, and its memory after the last round before that in which
it took part. What is there of that round or later belongs to rounds that did not count: it is dropped when a round is
done again, so that a resumed run is bit-identical to an uninterrupted one. Nothing in here travels by itself: a codec
or a method reads it and says what it sends.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from silotune import atomic
from silotune.errors import InputError

Remembered = dict[str, NDArray[np.float32]]

KEEP = 3
"""Rounds of a silo that stay: more than the states that a run keeps to go on from."""
MARK = "memory.json"
FORMAT = 1


@dataclass(frozen=True)
class Memory:
    """A silo's memory of one run."""

    root: Path
    """That the silo's operator chose; made when it is first written to."""
    run: str
    """The run's identity, hexadecimal."""
    silo: str
    """Its name."""

    @property
    def folder(self) -> Path:
        """Of this silo in this run; a name may hold characters that a file's must not."""
        return self.root / self.run / hashlib.sha256(self.silo.encode()).hexdigest()[:16]

    def before(self, round_: int) -> Remembered:
        """What the silo remembered when a round began: {} if it had not taken part.

        Raises:
            InputError: that cannot be read, or is no longer there.
        """
        kept = self._rounds()
        earlier = [number for number in kept if number < round_]
        if not earlier:
            if kept and _began_after(kept[min(kept)]):
                raise InputError(f"this silo no longer remembers what it held before round {round_}: start a new run.")
            return {}
        path = kept[max(earlier)]
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            raise InputError(f"this silo's memory of round {max(earlier)} cannot be read: start a new run.") from None

    def keep(self, round_: int, remembered: Remembered) -> None:
        """Write what the silo remembers after a round, whole or not at all, and on the disk.

        Raises:
            InputError: it cannot be written.
        """
        kept = self._rounds()
        earlier = max((number for number in kept if number < round_), default=0)
        whole = {name: np.ascontiguousarray(value) for name, value in remembered.items()}
        try:
            _marked(self.root)
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for number, path in kept.items():
                if number > round_:
                    path.unlink(missing_ok=True)
            atomic.write_bytes(self._file(round_), save(whole, {"before": str(earlier)}))
            for number in sorted(number for number in kept if number < round_)[: 1 - KEEP]:
                kept[number].unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"this silo's memory cannot be written ({error.strerror}).") from None

    def _file(self, round_: int) -> Path:
        return self.folder / f"round-{round_:04d}.safetensors"

    def _rounds(self) -> dict[int, Path]:
        found = self.folder.glob("round-*.safetensors")
        return {int(name[1]): path for path in found if (name := re.fullmatch(r"round-(\d+)\.safetensors", path.name))}


def _began_after(path: Path) -> bool:
    """Whether the silo had taken part in a round before the one that this file is of."""
    try:
        with safe_open(path, "numpy") as file:
            return bool((file.metadata() or {}).get("before") != "0")
    except (OSError, SafetensorError):
        return True


def _marked(root: Path) -> None:
    if not (root / MARK).is_file():
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic.write_text(root / MARK, json.dumps({"format": FORMAT}) + "\n")


def forget(root: Path) -> int:
    """Delete a memory folder with all that is in it.

    Returns:
        Of how many runs there was something in it.

    Raises:
        InputError: it is none, or cannot be deleted.
    """
    if not (root / MARK).is_file():
        raise InputError(f"{root}: not the folder of a silo's memory (it does not hold {MARK}).")
    runs = [entry for entry in root.iterdir() if entry.is_dir()]
    try:
        for run in runs:
            shutil.rmtree(run)
        (root / MARK).unlink()
        root.rmdir()
    except OSError as error:
        raise InputError(f"{root}: cannot be deleted ({error.strerror}).") from None
    return len(runs)
