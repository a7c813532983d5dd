"""One array and its manifest: round trips, and everything that is not admitted."""

import json
from dataclasses import replace

import numpy as np
import pytest

from silotune.errors import AdmissionError
from silotune.model.adapter import AdapterSpec
from silotune.wire import manifest
from silotune.wire.codecs.float32 import CODEC as FLOAT32
from silotune.wire.manifest import Manifest, pack, unpack

SPEC = AdapterSpec.of(
    {"b.lora_A.weight": (2, 5), "a.lora_B.weight": (4, 2), "a.lora_A.weight": (2, 3), "b.lora_B.weight": (6, 2)}
)


def adapter():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SPEC.shapes}


def test_round_trip():
    vector, described = pack(adapter(), FLOAT32)
    assert vector.dtype == np.float32 and vector.shape == (SPEC.size,)
    again = Manifest.from_json(described.to_json())
    assert again == described
    unpacked = unpack(vector, again, SPEC, FLOAT32)
    assert all((unpacked[name] == value).all() for name, value in adapter().items())


def packed(value=None, at=0):
    arrays = adapter()
    if value is not None:
        arrays["a.lora_A.weight"].flat[at] = value
    return pack(arrays, FLOAT32)


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite"), (1e6, "beyond 128")]
)
def test_numbers_that_must_not_be_used(value, says):
    with pytest.raises(AdmissionError, match=says):
        unpack(*packed(value), SPEC, FLOAT32)


def shapes(**changes):
    found = dict(SPEC.shapes) | changes
    return AdapterSpec(tuple(sorted((n, s) for n, s in found.items() if s)))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (shapes(**{"a.lora_A.weight": (1, 3)}), r"has shape \(1, 3\), expected \(2, 3\)"),
        (shapes(**{"a.lora_A.weight": None}), "1 tensors are missing, a.lora_A.weight first"),
        (shapes(evil=(1,)), "1 tensors are unknown, evil first"),
        (AdapterSpec(SPEC.shapes[::-1]), "not in order"),
        (AdapterSpec((*SPEC.shapes, SPEC.shapes[0])), "stands twice"),
    ],
)
def test_other_names_and_shapes(spec, says):
    vector, described = packed()
    with pytest.raises(AdmissionError, match=says):
        unpack(vector, replace(described, spec=spec), SPEC, FLOAT32)


def test_other_arrays():
    vector, described = packed()
    for wrong, says in (
        (vector.astype(np.float64), "dtype float64"),
        (vector.astype(np.float16), "dtype float16"),
        (vector[:-1], "has shape"),
        (vector.reshape(1, -1), "has shape"),
        (np.zeros(10**6, np.float32), "has shape"),
        (-vector, "digest"),
    ):
        with pytest.raises(AdmissionError, match=says):
            unpack(wrong, described, SPEC, FLOAT32)
    with pytest.raises(AdmissionError, match=r"its codec is .pickle., and that of this run float32"):
        unpack(vector, replace(described, codec="pickle"), SPEC, FLOAT32)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "{}", '{"version": 1}', "[" * 100_000,
        json.dumps({"version": 1, "codec": "float32", "sha256": "x", "tensors": [["a", [-1]]]}),
        json.dumps({"version": 1, "codec": "float32", "sha256": "x", "tensors": [["a", [2.5]]]}),
        json.dumps({"version": 1, "codec": "float32", "sha256": "x", "tensors": [["a", [True]]]}),
        json.dumps({"version": 1, "codec": "float32", "sha256": "x", "tensors": [["a", [2**40]]]}),
        json.dumps({"version": 1, "codec": "float32", "sha256": "x", "tensors": 3}),
    ],
)  # fmt: skip
def test_manifests_that_cannot_be_read(text):
    with pytest.raises(AdmissionError, match="cannot be read"):
        Manifest.from_json(text)


def test_versions_and_sizes_are_checked(monkeypatch):
    with pytest.raises(AdmissionError, match="of version 2"):
        Manifest.from_json('{"version": 2}')
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(AdmissionError, match="larger than 10"):
        Manifest.from_json(" " * 11)
