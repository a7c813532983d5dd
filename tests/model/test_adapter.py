"""Adapters as vectors, and the first adapter of a run."""

import numpy as np
import pytest

from silotune.model.adapter import AdapterSpec, flatten, initial_adapter, unflatten

SPEC = AdapterSpec.of(
    {"x.lora_B.weight": (6, 2), "x.lora_A.weight": (2, 400), "y.lora_A.weight": (2, 4), "y.lora_B.weight": (3, 2)}
)


def test_flatten_and_unflatten_are_inverse_and_sorted_by_name():
    adapter = {
        name: np.random.default_rng(1).normal(size=shape).astype(np.float32) for name, shape in reversed(SPEC.shapes)
    }
    vector = flatten(adapter)
    assert vector.shape == (SPEC.size,) and AdapterSpec.of(adapter) == SPEC
    again = unflatten(vector, SPEC)
    assert list(again) == sorted(adapter) and all((again[name] == adapter[name]).all() for name in adapter)
    with pytest.raises(ValueError, match="expected a vector"):
        unflatten(vector[:-1], SPEC)


def test_pairs():
    assert [module for module, _, _ in SPEC.pairs()] == ["x", "y"]


def test_the_first_adapter_changes_nothing_and_comes_from_the_seed():
    adapter = initial_adapter(SPEC, 3)
    assert not adapter["x.lora_B.weight"].any()
    a = adapter["x.lora_A.weight"]
    bound = 1 / np.sqrt(400)
    assert a.dtype == np.float32 and np.abs(a).max() <= bound
    # E[a^2] = 1 / (3 n): PEFT's Kaiming draw
    assert float((a.astype(float) ** 2).mean()) == pytest.approx(bound**2 / 3, rel=0.1)
    again, other = initial_adapter(SPEC, 3), initial_adapter(SPEC, 4)
    assert all((again[name] == adapter[name]).all() for name in adapter)
    assert (other["x.lora_A.weight"] != a).mean() > 0.99


def test_the_first_adapter_has_the_same_bits_on_every_machine():
    import hashlib

    digest = hashlib.sha256(flatten(initial_adapter(SPEC, 0)).tobytes()).hexdigest()
    assert digest == "faf2177d5720ac4bffb9f977c04f6a93e65bae6e69a9cc721cfaf54e23289fef"
