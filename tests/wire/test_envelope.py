"""Envelopes: declared fields only."""

import numpy as np
import pytest

from silotune.errors import AdmissionError
from silotune.wire.codecs.float32 import CODEC as FLOAT32
from silotune.wire.envelope import CARRIES_ADAPTER, DECLARED, MAX_REASON, MAX_TEXT, Envelope, failure
from silotune.wire.manifest import pack

VALUES = {str: "x", int: 3, float: 0.5}


def parts(direction, kind):
    fields = {name: VALUES[type_] for name, type_ in DECLARED[direction, kind].items()}
    if (direction, kind) not in CARRIES_ADAPTER:
        return fields, None, None
    return fields, *pack({"a.lora_A.weight": np.ones((1, 2), np.float32)}, FLOAT32)


@pytest.mark.parametrize(("direction", "kind"), DECLARED)
def test_declared_fields_pass_and_nothing_else(direction, kind):
    fields, vector, described = parts(direction, kind)
    Envelope(direction, kind, fields, vector, described)
    wrong = [fields | {"text": "a row"}, dict(list(fields.items())[1:])]
    wrong += [fields | {name: None} for name in fields]
    wrong += [fields | {name: [VALUES[type_]]} for name, type_ in DECLARED[direction, kind].items()]
    wrong += [fields | {n: x} for n, t in DECLARED[direction, kind].items() if t is int for x in (-1, True, 2**60, 1.0)]
    wrong += [
        fields | {n: x}
        for n, t in DECLARED[direction, kind].items()
        if t is float
        for x in (float("nan"), float("inf"), -0.5, 1e300, 1)
    ]
    wrong += [fields | {n: "x" * (MAX_TEXT + 1)} for n, t in DECLARED[direction, kind].items() if t is str]
    for changed in wrong:
        with pytest.raises(AdmissionError):
            Envelope(direction, kind, changed, vector, described)
    if "held" in fields:  # then what it names need not come along
        Envelope(direction, kind, fields, None, None)
        fields |= {"held": ""}
    other = None if vector is not None else np.ones(2, np.float32)
    with pytest.raises(AdmissionError, match="must carry"):
        Envelope(direction, kind, fields, other, described)


def test_a_failure_carries_its_reason_and_nothing_else():
    assert failure("train", "why").failure == "why"
    assert len(failure("train", "x" * 9999).failure) == MAX_REASON and failure("train", "x" * 9999).failure.endswith(
        "x ..."
    )
    assert failure("train", "a\x1b[2J\n\ud800").failure == "a\\x1b[2J\\n\\ud800"
    assert Envelope("up", "train", {"failure": "\x07" * MAX_REASON}).failure.isprintable()
    with pytest.raises(AdmissionError, match="has 501 characters, at most 500 are taken"):
        Envelope("up", "train", {"failure": "x" * 501})
    with pytest.raises(AdmissionError):
        Envelope("up", "train", {"failure": "x"}, np.ones(1, np.float32))
    with pytest.raises(AdmissionError):
        Envelope("down", "train", {"failure": "x"})
