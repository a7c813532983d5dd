"""What a silo remembers from round to round, in a folder of its own that outlasts processes.

    FOLDER/memory.json                         says what the folder is, so that nothing else is ever deleted
    FOLDER/identity.pem                        the silo's key (`silo.identity`)
    FOLDER/spent.json                          rounds of today, which a policy may bound (`silo.policy`)
    FOLDER/split-SILO.json                     what the silo holds out where it has no test file, whoever asks
    FOLDER/RUN/SILO/job.sha256                 of the job with which the silo joined that run
    FOLDER/RUN/SILO/round-0003.safetensors     what the silo remembered after its part in round 3

A round's memory is a function of the message, the silo's rows, and its memory after the last round to which its update
counted; the server says which that was. What is there of later rounds did not count (the run was stopped and resumed,
or the answer was lost or late) and is dropped, so that server and silo go on from the same, and a resumed run is
bit-identical to an uninterrupted one. What is left of a run that ended half a year ago goes when another is joined.
Nothing in here travels by itself: a codec or a method reads it and says what it sends. SILO is a digest of the silo's
name.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from silotune import atomic
from silotune.errors import InputError

Remembered = dict[str, NDArray[np.float32]]

KEEP = 3
"""Rounds of a silo that stay: more than the states that a run keeps to go on from."""
OLD, ALWAYS = 180 * 24 * 3600.0, 8
"""Seconds after which a run that this silo had no part in is forgotten as another one is joined, but for so many runs,
the latest: a clock may be wrong."""
MARK, LOCK, KEY, SPENT = "memory.json", ".lock", "identity.pem", "spent.json"
FORMAT = 1
SHARES = 0.05, 0.5
"""Within which a job may say, the first time, what share is held out."""


def hash_of(job: str) -> str:
    """The hash by which a silo pins a job, and by which somebody approves it."""
    return hashlib.sha256(job.encode()).hexdigest()


@dataclass(frozen=True)
class Memory:
    """A silo's memory of one run."""

    root: Path
    """The folder that the silo's operator chose; it is made when it is first written to."""
    run: str
    """The run's identity, hexadecimal."""
    silo: str
    """The silo's name."""

    @property
    def folder(self) -> Path:
        """Where this silo's memory of this run lies."""
        return self.root / self.run / _digest(self.silo)

    def begin(self, round_: int, counted: int) -> Remembered:
        """What the silo remembers as a round begins: {} if none of its updates has counted yet.

        What is there of later rounds than that of the last update that counted is dropped.

        Args:
            round_: that begins.
            counted: the round of that update; 0 if there is none.

        Raises:
            InputError: that cannot be read, or is no longer there.
        """
        if not 0 <= counted < round_:
            raise InputError(f"the server says that round {counted} counted, and asks for round {round_}")
        kept = self._rounds()
        if any(number > counted for number in kept):
            with writing(self.root):
                for number, path in kept.items():
                    if number > counted:
                        path.unlink(missing_ok=True)
        if not counted:
            return {}
        if counted not in kept:
            raise InputError(f"this silo no longer remembers what it held after round {counted}: start a new run.")
        try:
            return load_file(kept[counted])
        except (OSError, SafetensorError):
            raise InputError(f"this silo's memory of round {counted} cannot be read: start a new run.") from None

    def keep(self, round_: int, remembered: Remembered) -> None:
        """Write what the silo remembers after a round, whole or not at all, and on the disk.

        Raises:
            InputError: it cannot be written, or the silo has gone on to a later round.
        """
        whole = {name: np.ascontiguousarray(value) for name, value in remembered.items()}
        with writing(self.root):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept = self._rounds()
            if kept and max(kept) > round_:
                raise InputError(f"this silo has gone on to round {max(kept)}: what came of round {round_} is too late")
            atomic.write_bytes(self._file(round_), save(whole))
            for number in sorted(number for number in kept if number < round_)[: 1 - KEEP]:
                kept[number].unlink(missing_ok=True)

    def join(self, job: str) -> None:
        """Take note of the job with which this silo joins the run; the same may join again.

        Raises:
            InputError: it joined with another, or this cannot be written.
        """
        with writing(self.root):
            if self._pin.is_file():
                self.require(job)
                return
            _forget_old_runs(self.root)
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic.write_text(self._pin, hash_of(job) + "\n")

    def require(self, job: str) -> None:
        """Refuse any job but the one with which this silo joined the run.

        Raises:
            InputError: it is another, or the silo has not joined.
        """
        try:
            joined = self._pin.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise InputError(
                "this silo does not remember that it joined this run: start the silo again, so that it joins again"
            ) from None
        if joined != hash_of(job):
            raise InputError("the server asks for another job than the one with which this silo joined this run")
        with suppress(OSError):  # that the silo takes part is what keeps the run from being forgotten
            os.utime(self._pin)

    @property
    def _pin(self) -> Path:
        return self.folder / "job.sha256"

    def _file(self, round_: int) -> Path:
        return self.folder / f"round-{round_:04d}.safetensors"

    def _rounds(self) -> dict[int, Path]:
        found = self.folder.glob("round-*.safetensors")
        return {int(name[1]): path for path in found if (name := re.fullmatch(r"round-(\d+)\.safetensors", path.name))}


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Write in a memory folder, which is made and marked as one; one process at a time.

    Raises:
        InputError: it cannot be written.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (root / MARK).is_file() and (others := [each.name for each in root.iterdir() if not _own(each)]):
            raise InputError(f"the folder of this silo's memory holds something else ({others[0]}): name an empty one.")
        with FileLock(root / LOCK):
            if not (root / MARK).is_file():
                atomic.write_text(root / MARK, json.dumps({"format": FORMAT}) + "\n")
            yield
    except OSError as error:
        raise InputError(
            f"this silo's memory cannot be written ({error.strerror}): name another folder as `memory` in silo.toml"
        ) from None


def _own(path: Path) -> bool:
    """Whether something in a memory folder is the memory's, by its name; what was cut short as it was written too."""
    written = r"(memory\.json|spent\.json|split-[0-9a-f]{16}\.json|identity\.pem)"
    return bool(re.fullmatch(rf"[0-9a-f]{{16}}|\.lock|{written}|\.{written}-[0-9a-f]+", path.name))


def _forget_old_runs(root: Path) -> None:
    """Delete what is left of runs long over; one that cannot be deleted stays."""
    with suppress(OSError):
        runs = [run for run in root.iterdir() if re.fullmatch(r"[0-9a-f]{16}", run.name) and run.is_dir()]
        written = {run: max(path.lstat().st_mtime for path in (run, *run.rglob("*"))) for run in runs}
        for run in sorted(runs, key=lambda run: written[run])[:-ALWAYS]:
            if time.time() - written[run] > OLD:
                shutil.rmtree(run)


def _digest(name: str) -> str:
    """A silo's name as that of a file: it may hold characters that a file's must not."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def own_split(root: Path, silo: str, share: float) -> tuple[int, float]:
    """The seed and the share of what a silo holds out: drawn once, and the same for every job from then on.

    Were they a job's, a server could have losses told of rows that it chose: over two sets that differ in a few.

    Args:
        root: of the memory.
        silo: its name.
        share: to hold out, if this is the first time; brought into `SHARES`, for it may be a job's.

    Raises:
        InputError: they cannot be read or written.
    """
    path, share = root / f"split-{_digest(silo)}.json", min(max(share, SHARES[0]), SHARES[1])
    with writing(root):
        if not path.is_file():
            atomic.write_text(path, json.dumps({"seed": secrets.randbits(62), "share": share}) + "\n")
        path.chmod(0o600)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return int(told["seed"]), float(told["share"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: cannot be read. Delete it, and another share will be held out.") from None


def forget(root: Path) -> int:
    """Delete a memory folder with all that silos remember in it, and nothing else.

    Returns:
        The number of runs that it held something of.

    Raises:
        InputError: it is none, or cannot be deleted.
    """
    if not (root / MARK).is_file():
        raise InputError(f"{root}: not the folder of a silo's memory (it does not hold {MARK}).")
    entries = list(root.iterdir())
    if others := [entry.name for entry in entries if not _own(entry)]:
        raise InputError(f"{root}: holds something else ({others[0]}). Move it away first.")
    runs = [entry for entry in entries if entry.is_dir()]
    try:
        for run in runs:
            shutil.rmtree(run)
        for path in sorted(root.iterdir(), key=lambda path: path.name == MARK):  # that comes last
            path.unlink(missing_ok=True)
        root.rmdir()
    except OSError as error:
        raise InputError(f"{root}: cannot be deleted ({error.strerror}).") from None
    return len(runs)
