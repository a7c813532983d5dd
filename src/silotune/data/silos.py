"""Which silos a pattern names, and which files are theirs."""

import glob
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from silotune.errors import DataError


@dataclass(frozen=True)
class SiloFiles:
    """A silo's name and the files of its text."""

    name: str
    train: Path
    test: Path | None
    """None: a share of the training rows is held out."""


def find_silos(patterns: str | Sequence[str]) -> tuple[SiloFiles, ...]:
    """Find the silos that patterns name, sorted by name.

    A pattern (glob) may match a silo's folder with `train.jsonl` and optionally `test.jsonl`; a folder of such
    folders; a folder of files `NAME.train.jsonl` and optionally `NAME.test.jsonl`; or such files themselves.

    Raises:
        DataError: nothing there, or two silos of one name.
    """
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    found: list[SiloFiles] = []
    for pattern in listed:
        found_here = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))  # noqa: PTH207 - absolute
        matches = [Path(match) for match in found_here]
        if not matches:
            raise DataError(f"data.silos: nothing matches {pattern}.")
        silos = [silo for match in matches for silo in _silos_at(match)]
        if not silos:
            raise DataError(f"data.silos: {pattern} holds no train.jsonl and no NAME.train.jsonl.")
        found += silos
    by_name: dict[str, SiloFiles] = {}
    for silo in found:
        other = by_name.setdefault(silo.name, silo)
        if other.train != silo.train:
            raise DataError(f"data.silos: two silos are called {silo.name!r}: {other.train} and {silo.train}.")
    return tuple(by_name[name] for name in sorted(by_name))


def _silos_at(path: Path) -> list[SiloFiles]:
    if path.is_file():
        return [_flat(path)] if path.name.endswith(".train.jsonl") else []
    if (path / "train.jsonl").is_file():
        test = path / "test.jsonl"
        return [SiloFiles(path.resolve().name, path / "train.jsonl", test if test.is_file() else None)]
    flat = sorted(path.glob("*.train.jsonl"))
    if flat:
        return [_flat(file) for file in flat]
    return [
        silo for folder in sorted(path.iterdir()) if (folder / "train.jsonl").is_file() for silo in _silos_at(folder)
    ]


def _flat(train: Path) -> SiloFiles:
    name = train.name.removesuffix(".train.jsonl")
    test = train.with_name(f"{name}.test.jsonl")
    return SiloFiles(name, train, test if test.is_file() else None)


@dataclass(frozen=True)
class SiloConfig:
    """What a silo knows of itself: its own node configuration. Nothing in it ever comes from the server."""

    files: SiloFiles
    base: str | None = None
    """Where the base model lies here; None: the job's embedded name or hub id."""
    holdout: float = 0.1
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    """Torch threads; 0: all cores."""
    ledger: Path | None = None
    """Where the silo itself notes what leaves it."""
    scratch: Path | None = None
    """A folder on this machine where progress is shown and a wish to stop is read."""

    def to_json(self) -> str:
        """Write as one line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "SiloConfig":
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        files = values.pop("files")
        for key in ("ledger", "scratch"):
            values[key] = Path(values[key]) if values[key] else None
        test = Path(files["test"]) if files["test"] else None
        return cls(files=SiloFiles(files["name"], Path(files["train"]), test), **values)
