"""The message schema: four kinds, each with its declared fields; nothing else is sent and nothing else accepted.

    kind       down (server to silo)     up (silo to server)
    join       job                       who the silo is and how much it holds
    train      job, round, adapter,      what training cost, update
    evaluate   job, round, adapter       sums over the held-out rows, whether the adapter is kept
    alone      job, rounds               sums over the held-out rows of a model that no one else sees, what it cost

A silo that keeps an adapter which it scored is asked to train from it by its digest, `held`, and not sent it again;
what a method sends beside the adapter still comes along. A silo that cannot answer sends the one field `failure`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from silotune.data.read.files import printable
from silotune.errors import AdmissionError
from silotune.wire.manifest import Manifest
from silotune.wire.profile import Alone, Profile

Scalar = str | int | float
Kind = Literal["join", "train", "evaluate", "alone"]
Direction = Literal["down", "up"]

SCHEMA = 7
"""Travels with every message; another number is refused on both sides."""
NOT_HELD = "this silo does not keep the adapter that it is to train from"
"""The reason of a silo that was sent an adapter's digest and must be sent the adapter."""
MAX_TEXT = 1 << 16
MAX_REASON = 500
"""Characters of a failure's reason."""

DECLARED: Mapping[tuple[Direction, Kind], Mapping[str, type]] = {
    ("down", "join"): {"job": str},
    ("down", "train"): {"job": str, "round": int, "held": str, "counted": int},
    ("down", "evaluate"): {"job": str, "round": int},
    ("down", "alone"): {"job": str, "rounds": int},
    ("up", "join"): {each.name: cast(type, each.type) for each in fields(Profile)},
    ("up", "train"): {
        "steps": int,
        "loss": float,
        "tokens": int,
        "loss_tokens": int,
        "examples": int,
        "seconds": float,
        "codec_error": float,
    },
    ("up", "evaluate"): {"rows": int, "tokens": int, "loss": float, "correct": int, "seconds": float, "kept": int},
    ("up", "alone"): {each.name: cast(type, each.type) for each in fields(Alone)},
}
"""Every field that may travel. What is not here does not leave a silo."""

CARRIES_ADAPTER = {("down", "train"), ("down", "evaluate"), ("up", "train")}


@dataclass(frozen=True)
class Envelope:
    """The content of one message, checked against the schema when it is made."""

    direction: Direction
    kind: Kind
    fields: Mapping[str, Scalar] = field(default_factory=dict)
    vector: NDArray[np.generic] | None = None
    """An adapter, or an update, as its codec writes it."""
    manifest: Manifest | None = None

    def __post_init__(self) -> None:
        if set(self.fields) == {"failure"} and self.direction == "up":
            reason = self.fields["failure"]
            if self.vector is not None or not isinstance(reason, str):
                raise AdmissionError("a failure carries its reason and nothing else")
            if len(reason) > MAX_REASON:
                raise AdmissionError(f"a failure's reason has {len(reason)} characters, at most {MAX_REASON} are taken")
            return
        declared = DECLARED[self.direction, self.kind]
        if set(self.fields) != set(declared):
            odd = sorted(set(self.fields) ^ set(declared))
            raise AdmissionError(f"the fields of {self.kind} are not the declared ones: {', '.join(odd)[:200]}")
        for name, kind in declared.items():
            value = self.fields[name]
            if type(value) is not kind:
                raise AdmissionError(f"field {name} must be {kind.__name__}, not {type(value).__name__}")
            if isinstance(value, str) and len(value) > MAX_TEXT:
                raise AdmissionError(f"field {name} is longer than {MAX_TEXT} characters")
            if isinstance(value, int) and not 0 <= value < 2**53:
                raise AdmissionError(f"field {name} is out of range")
            if isinstance(value, float) and not np.isfinite(value):
                raise AdmissionError(f"field {name} is not finite")
            if isinstance(value, float) and not 0 <= value < 2**53:
                raise AdmissionError(f"field {name} is out of range")
        carries = (self.direction, self.kind) in CARRIES_ADAPTER
        if carries != (self.vector is not None) and not (carries and self.fields.get("held")):
            raise AdmissionError(
                f"{self.kind} {self.direction} must carry {'no' if self.vector is not None else 'an'} adapter"
            )
        if (self.vector is None) != (self.manifest is None):
            raise AdmissionError("an adapter and its manifest travel together")

    @property
    def digest(self) -> str:
        """SHA-256 of the array that it carries, hexadecimal; empty if it carries none."""
        return self.manifest.sha256 if self.manifest else ""

    @property
    def failure(self) -> str | None:
        """Why the silo could not answer, as it may be shown, or None."""
        reason = self.fields.get("failure")
        return shown(str(reason)) if reason is not None else None


def failure(kind: Kind, reason: str) -> Envelope:
    """A silo's answer that says why there is none."""
    return Envelope("up", kind, {"failure": shown(reason)})


def shown(reason: str) -> str:
    """A reason of bounded length in which nothing plays with a terminal; what was cut off is marked."""
    text = printable(reason[: MAX_REASON + 1])
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 4] + " ..."
