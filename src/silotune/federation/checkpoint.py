"""Saving and finding the state of a run, so that a kill at any moment loses at most the round it fell into."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from silotune.algorithms.interface import ServerState
from silotune.atomic import sync, tensor_errors
from silotune.errors import RunError
from silotune.federation.run import RunFolder
from silotune.model.adapter import AdapterSpec, fault_of
from silotune.wire.profile import Profile

KEEP = 2
"""How many rounds' states stay."""
FORMAT = 3


@dataclass(frozen=True)
class Saved:
    """A state and what belongs to it."""

    state: ServerState
    profiles: Mapping[str, Profile]
    """Every silo that has ever joined, by name."""
    metrics_bytes: int
    """Length of metrics.jsonl at that time: what comes after belongs to a round that did not count."""
    counted: Mapping[str, int] = field(default_factory=dict)
    """The last round to which each silo's update counted, by name."""


def save(run: RunFolder, saved: Saved) -> None:
    """Write the state of a round: whole or not at all, and on the disk before it has its name.

    The metrics that it refers to are on the disk before it.
    """
    run.states.mkdir(exist_ok=True)
    if run.metrics_file.exists():
        sync(run.metrics_file)
    target = run.states / f"round-{saved.state.round:04d}"
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=run.states))
    tensors = {f"adapter/{name}": value for name, value in saved.state.adapter.items()}
    tensors |= {f"slots/{name}": value for name, value in saved.state.slots.items()}
    with tensor_errors():
        whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(whole, unfinished / "state.safetensors")
    described = {
        "format": FORMAT,
        "round": saved.state.round,
        "metrics_bytes": saved.metrics_bytes,
        "profiles": {name: asdict(profile) for name, profile in saved.profiles.items()},
        "counted": dict(saved.counted),
    }
    (unfinished / "state.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    for path in (*unfinished.iterdir(), unfinished):
        sync(path)
    if target.exists():
        shutil.rmtree(target)
    unfinished.rename(target)
    sync(run.states)
    for old in _rounds(run)[:-KEEP]:
        shutil.rmtree(old)


def latest(run: RunFolder) -> Saved | None:
    """The last state that was saved, or None.

    Raises:
        RunError: a state is there but cannot be read.
    """
    rounds = _rounds(run)
    if not rounds:
        return None
    folder = rounds[-1]
    try:
        described = _described(folder)
        tensors = load_file(folder / "state.safetensors")
        profiles = {name: Profile(**values) for name, values in described["profiles"].items()}
        state = ServerState(described["round"], _below("adapter/", tensors), _below("slots/", tensors))
        if not all(np.isfinite(value).all() for value in tensors.values()):
            raise ValueError("not finite")
        counted = {str(name): int(round_) for name, round_ in described["counted"].items()}
        return Saved(state, profiles, described["metrics_bytes"], counted)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(
            f"{folder}: cannot be read ({type(error).__name__}). Remove this folder to go on from the round before."
        ) from None


def _described(folder: Path) -> dict[str, Any]:
    """What a state's state.json says.

    Raises:
        RunError: another release wrote it.
        OSError, ValueError, KeyError, TypeError: it cannot be read.
    """
    described: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if described["format"] != FORMAT:
        raise RunError(
            f"{folder}: written in format {described['format']!r:.20}, and this release reads format {FORMAT}. Go on "
            "with the release that wrote it, or start a new run."
        )
    return described


def require_sound(run: RunFolder, saved: Saved | None, spec: AdapterSpec) -> None:
    """Refuse a saved adapter that is not one of this run's base and settings.

    Raises:
        RunError: saying in what it differs.
    """
    if saved and (fault := fault_of(saved.state.adapter, spec)):
        raise RunError(
            f"{run.states}: the adapter of round {saved.state.round} cannot be used: {fault}. Remove the folder of "
            "that round to go on from the one before."
        )


def last_round(run: RunFolder) -> int | None:
    """The last round that is saved; 0 is the base's score, None before that."""
    rounds = _rounds(run)
    return _number(rounds[-1]) if rounds else None


def known_silos(run: RunFolder) -> Mapping[str, Profile]:
    """Every silo that had ever joined when the last state was saved, by name; no tensor is read.

    Raises:
        RunError: a state is there but cannot be read.
    """
    rounds = _rounds(run)
    if not rounds:
        return {}
    try:
        described = _described(rounds[-1])
        return {name: Profile(**values) for name, values in described["profiles"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{rounds[-1]}: cannot be read ({type(error).__name__}).") from None


def rewind(run: RunFolder, saved: Saved | None) -> None:
    """Cut metrics.jsonl back to the saved state, and sweep up what an interrupted save has left.

    The ledger keeps every message that was ever sent.

    Raises:
        RunError: metrics.jsonl has lost lines of rounds that count.
    """
    for leftover in run.states.glob(".unfinished-*"):
        shutil.rmtree(leftover)
    expected, found = saved.metrics_bytes if saved else 0, metrics_bytes(run)
    if found < expected:
        assert saved is not None
        raise RunError(
            f"{run.metrics_file}: has {found} bytes, and {expected} when round {saved.state.round} was saved: lines of "
            "rounds that count are lost. Put the whole file back, or start a new run."
        )
    if found:
        os.truncate(run.metrics_file, expected)


def reached(run: RunFolder) -> str:
    """What is saved, in words for a message that tells why a run does not go on."""
    rounds = _rounds(run)
    if not rounds:
        return "no round is saved yet"
    last = _number(rounds[-1])
    return f"round {last} is saved" if last else "the score of the base model is saved, and no round yet"


def metrics_bytes(run: RunFolder) -> int:
    """Length of metrics.jsonl now."""
    return run.metrics_file.stat().st_size if run.metrics_file.exists() else 0


def _below(prefix: str, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _rounds(run: RunFolder) -> list[Path]:
    """Folders of saved rounds in order; what has another name is not ours."""
    named = (path for path in run.states.glob("round-*") if re.fullmatch(r"round-[0-9]{4,}", path.name))
    return sorted((path for path in named if path.is_dir()), key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("round-"))
