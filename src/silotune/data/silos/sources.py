"""Which silos there are, and which files are theirs."""

import glob
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from silotune.data.read.files import printable, require_file
from silotune.data.read.readers import ENDINGS
from silotune.data.read.reading import Reading
from silotune.errors import DataError
from silotune.settings import HUB, SiloSource


@dataclass(frozen=True)
class SiloFiles:
    """A silo's name and the sources of its text: paths of files, or dataset ids."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...] = ()
    """Empty: a share of the training rows is held out."""
    part: str | None = None
    """The folder that says which rows of these sources are this silo's (`pool`); None: all."""


def find_silos(patterns: str | Sequence[str]) -> tuple[SiloFiles, ...]:
    """Find the silos that patterns name, sorted by name.

    A pattern (glob) may match a silo's folder with `train.*` and optionally `test.*`; a folder of such folders; a
    folder of files `NAME.train.*` and optionally `NAME.test.*`; or such files themselves. A split may be several
    files (`train.jsonl`, `train.2.csv`), which are read in the order of their names. Folders of runs are no silos.

    Raises:
        DataError: nothing there, or two silos of one name.
    """
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    found: list[SiloFiles] = []
    for pattern in listed:
        if pattern.startswith(HUB):
            raise DataError(f"data.silos: {printable(pattern)} is a dataset, not a silo. Name a silo for it with "
                            "[[data.silos]], or deal it out with [data.pool].")  # fmt: skip
        matches = [Path(match) for match in _matches(pattern, "data.silos") if not _of_runs(Path(match))]
        silos = [silo for match in matches for silo in _silos_at(match) or (_no_silo(match) if match.is_dir() else [])]
        if not silos:
            raise DataError(f"data.silos: {printable(pattern)} holds no train.* and no NAME.train.* file of rows "
                            f"({', '.join(ENDINGS)}).")  # fmt: skip
        found += silos
    return _by_name(found)


def find_runs(patterns: Sequence[str]) -> tuple[str, ...]:
    """The folders of runs that patterns name as silos, or that lie where those are looked for, by their names there."""
    found: dict[Path, str] = {}
    for match in (Path(match) for pattern in patterns for match in _matches(pattern, "data.silos")):
        run = next((folder for folder in (match, *match.parents) if _is_run(folder)), None)
        if run is not None:
            found.setdefault(run, run.name)
            continue
        below = [entry for entry in _folders(match) for entry in (entry, *(() if _is_run(entry) else _folders(entry)))]
        found |= {entry: str(entry.relative_to(match.parent)) for entry in below if _is_run(entry)}
    return tuple(map(printable, dict.fromkeys(found.values())))


def _is_run(path: Path) -> bool:
    """Whether a folder is that of a run, or is becoming one."""
    made = (path / "recipe.toml").is_file() and (path / "environment.json").is_file()
    return made or (path / ".unfinished").is_dir()


def _of_runs(path: Path) -> bool:
    """Whether a folder is a run's, or lies in one, or holds folders of runs and nothing in which there are rows."""
    if any(map(_is_run, (path, *path.parents))):
        return True
    folders = _folders(path)
    rows = path.is_dir() and bool(_silos_in(path))
    return not rows and any(map(_is_run, folders)) and all(_is_run(one) or not _entries(one) for one in folders)


def _folders(path: Path) -> list[Path]:
    """The folders in a folder."""
    return [entry for entry in _entries(path) if entry.is_dir()] if path.is_dir() else []


def listed_silos(sources: Sequence[SiloSource]) -> tuple[SiloFiles, ...]:
    """The silos of an explicit list, sorted by name.

    Raises:
        DataError: a pattern matches nothing, or two silos of one name.
    """
    found: list[SiloFiles] = []
    for number, source in enumerate(sources):
        if any(silo.name == source.name for silo in found):
            raise DataError(f"data.silos: two silos are called {printable(source.name)!r}.")
        train = expand(source.train, f"data.silos[{number}].train")
        test = expand(source.test, f"data.silos[{number}].test") if source.test is not None else ()
        found.append(SiloFiles(source.name, train, test))
    return _by_name(found)


def expand(sources: str | Sequence[str], key: str) -> tuple[str, ...]:
    """The files that patterns match, in order; dataset ids as they are.

    Raises:
        DataError: a pattern matches nothing.
    """
    files: list[str] = []
    for pattern in [sources] if isinstance(sources, str) else sources:
        files += [pattern] if pattern.startswith(HUB) else _matches(pattern, key)
    twice = next((file for file in files if files.count(file) > 1), None)
    if twice is not None:
        raise DataError(f"{key}: {printable(twice)} is named twice.")
    return tuple(files)


def _matches(pattern: str, key: str) -> list[str]:
    """What lies at a path, or what a pattern matches, in order."""
    try:
        if os.path.lexists(pattern):
            return [pattern]
        found = sorted(glob.glob(pattern))  # noqa: PTH207 - absolute
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise DataError(f"{key}: {printable(pattern)[:200]} cannot be looked at ({reason}).") from None
    if not found:
        advice = " Write / between folders, not a backslash." if "\\" in pattern else ""
        raise DataError(f"{key}: nothing matches {printable(pattern)[:200]}.{advice}")
    return found


def _by_name(found: Sequence[SiloFiles]) -> tuple[SiloFiles, ...]:
    by_name: dict[str, SiloFiles] = {}
    for silo in found:
        # Names that look alike would be told apart by nobody.
        other = by_name.setdefault(unicodedata.normalize("NFKC", silo.name), silo)
        if other != silo:
            raise DataError(f"data.silos: two silos are called {printable(silo.name)!r}: "
                            f"{printable(other.train[0])} and {printable(silo.train[0])}.")  # fmt: skip
    return tuple(sorted(by_name.values(), key=lambda silo: silo.name))


def _silos_at(path: Path) -> list[SiloFiles]:
    """The silos of a folder or of a file `NAME.train.*`."""
    if not path.is_dir():
        name = _name_of(path, "train")
        return [_silo(path.parent, name)] if name else []
    if silos := _silos_in(path):
        return silos
    found = []
    for entry in _entries(path):
        if entry.is_dir() and not _of_runs(entry):
            found += _silos_in(entry) or _no_silo(entry)
    return found


def _no_silo(folder: Path) -> list[SiloFiles]:
    raise DataError(
        f"{printable(folder)}: a silo without rows: it holds no train.* and no NAME.train.* file of rows "
        f"({', '.join(ENDINGS)}). Remove the folder, or name its files so."
    )


def _silos_in(folder: Path) -> list[SiloFiles]:
    """The silos whose files lie in a folder itself."""
    entries = _entries(folder)
    for entry in entries:
        _require_plain_name(entry)
    if any(_belongs(entry, "", "train") for entry in entries):
        return [_silo(folder, "")]
    names = sorted({name for entry in entries if (name := _name_of(entry, "train"))})
    for entry in entries:
        name = _name_of(entry, "test")
        if _belongs(entry, "", "test") or (name and name not in names):
            raise DataError(f"{printable(entry)}: a silo without rows: it has a test and no train file beside it.")
    return [_silo(folder, name) for name in names]


def _require_plain_name(entry: Path) -> None:
    """Refuse a file that is meant to be a split and would be passed over: `Train.jsonl`, `a.test.xlsx`."""
    parts = entry.name.lower().split(".")[:-1]
    meant = next((split for split in ("train", "test") if split in parts), None)
    if meant and not (_belongs(entry, "", meant) or _name_of(entry, meant)):
        raise DataError(
            f"{printable(entry)}: looks like a {meant} file and cannot be read as one. Call it {meant}.* or "
            f"NAME.{meant}.* in small letters, with one of {', '.join(ENDINGS)}; or move it elsewhere."
        )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be read ({error.strerror}).") from None


def _stem(path: Path) -> str:
    """The name without the ending of a format; empty if it has none of those."""
    name = path.name
    ending = max((end for end in ENDINGS if name.lower().endswith(end)), key=len, default=None)
    return name[: -len(ending)] if ending else ""


def _name_of(path: Path, split: str) -> str:
    """NAME of a file `NAME.train.*` or `NAME.train.2.*`; empty if it is not called so."""
    name, separator, more = _stem(path).rpartition(f".{split}")
    return name if separator and (not more or more.startswith(".")) else ""


def _belongs(path: Path, silo: str, split: str) -> bool:
    """Whether a file holds rows of a split: `train.jsonl`, `train.2.csv.gz`, or with the silo's name before."""
    stem, start = _stem(path), f"{silo}.{split}" if silo else split
    return stem == start or stem.startswith(f"{start}.")


def _silo(folder: Path, name: str) -> SiloFiles:
    """The silo of a folder, or of the files in it that begin with its name. Its links must not lead out of there."""
    splits: dict[str, tuple[str, ...]] = {}
    for split in ("train", "test"):
        files = [entry for entry in _entries(folder) if _belongs(entry, name, split)]
        for file in files:
            require_file(file, folder)
        splits[split] = tuple(str(file) for file in files)
    return SiloFiles(name or folder.resolve().name, splits["train"], splits["test"])


@dataclass(frozen=True)
class SiloConfig:
    """What a silo knows of itself. Nothing in it ever comes from the server."""

    files: SiloFiles
    base: str | None = None
    """The base model here: a place, a hub id or the embedded name; None: the job's, if that is the embedded one."""
    holdout: float | None = None
    """Share to hold out where there is no test file; None: the job's."""
    seed: int | None = None
    """Seed of what is held out and of `rows`; None: the job's."""
    rows: int = 0
    """Training rows that it takes at most, the first of a shuffle by the seed; 0: all."""
    reading: Reading = field(default_factory=Reading)
    leaks: Path | None = None
    """The folder that names the test rows that also stand in training text; None: not looked for."""
    drop_leaks: bool = False
    """Leave those out of the test."""
    device: str = "auto"
    dtype: str = "auto"
    keep: str = "float32"
    """Numbers of kept activations; "off": none are kept."""
    keep_mib: int = 1024
    threads: int = 0
    """Torch threads; 0: all cores."""
    min_rows: int = 0
    """It tells no loss of fewer rows than these, and trains on no fewer in a round."""
    min_steps: int = 0
    """Optimizer steps that its update has at least."""
    losses: bool = True
    """Whether it tells losses."""
    ledger: Path | None = None
    """Where the silo itself notes what leaves it."""
    memory: Path | None = None
    """Where it keeps what it must remember from round to round; None: it remembers nothing."""
    isolation: str = "simulation"
    """How its text is kept from what a server sends: by two users of its machine (`users`), or not (`none`)."""
    own_machine: bool = False
    """Whether it is on a machine that is not the server's: then a job is pinned, and what is held out is its own."""
    scratch: Path | None = None
    """A folder on this machine where progress is shown and a wish to stop is read."""
