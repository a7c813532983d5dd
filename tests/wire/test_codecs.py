"""Codecs: what each promises of every number, the same bits on every machine, and nothing that it never writes."""

import hashlib
from importlib import resources
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from silotune.errors import AdmissionError
from silotune.model.adapter import AdapterSpec
from silotune.settings import CodecName
from silotune.wire import codecs
from silotune.wire.codecs.int8 import BLOCK
from silotune.wire.manifest import MAX_MAGNITUDE, pack, rounded, unpack

NAMES = get_args(CodecName)
SIZES = (0, 1, 63, 64, 65, 1000)


def numbers(count, seed=0):
    return (np.random.default_rng(seed).standard_normal(count) * 1e-3).astype(np.float32)


def drawn(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def steps_of(vector):
    """The step of each number's block in int8, the plain way."""
    found = [np.float32(np.abs(vector[at : at + BLOCK]).max()) / np.float32(127) for at in range(0, len(vector), BLOCK)]
    return np.repeat(np.array(found, np.float32), BLOCK)[: len(vector)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", SIZES)
def test_the_bytes_are_those_that_were_said(name, count):
    codec = codecs.find(name)
    array = codec.encode(numbers(count), drawn())
    assert array.dtype == np.dtype(codec.dtype) and array.shape == (codec.length(count),)
    assert array.nbytes == codec.bytes(count)
    back = codec.decode(array, count)
    assert back.dtype == np.float32 and back.shape == (count,)


def test_bytes_per_number():
    assert [codecs.find(name).bytes(6400) for name in ("float32", "bfloat16", "int8")] == [25600, 12800, 6800]


MODERATE = st.floats(-MAX_MAGNITUDE, MAX_MAGNITUDE, width=32, allow_subnormal=False)


@settings(deadline=None)
@given(arrays(np.float32, st.integers(1, 200), elements=MODERATE))
def test_float32_is_exact_and_bfloat16_within_a_256th(vector):
    exact, half = codecs.find("float32"), codecs.find("bfloat16")
    assert (exact.decode(exact.encode(vector, None), len(vector)) == vector).all()
    back = half.decode(half.encode(vector, None), len(vector))
    normal = np.abs(vector) >= np.finfo(np.float32).tiny
    assert (np.abs(back - vector)[normal] <= np.abs(vector[normal]) / 256).all()


@settings(deadline=None)
@given(arrays(np.float32, st.integers(1, 200), elements=MODERATE))
def test_bfloat16_is_torchs(vector):
    import torch

    codec = codecs.find("bfloat16")
    expected = torch.from_numpy(vector).to(torch.bfloat16).float().numpy()
    assert (codec.decode(codec.encode(vector, None), len(vector)) == expected).all()


@settings(deadline=None)
@given(arrays(np.float32, st.integers(1, 200), elements=MODERATE), st.integers(0, 99))
def test_int8_is_within_half_a_step_to_the_nearest_and_a_step_where_it_is_drawn(vector, seed):
    codec, step = codecs.find("int8"), steps_of(vector)
    slack = 1e-5 * step + np.finfo(np.float32).tiny
    nearest = codec.decode(codec.encode(vector, None), len(vector))
    assert (np.abs(nearest - vector) <= step / 2 + slack).all()
    random = codec.decode(codec.encode(vector, drawn(seed)), len(vector))
    assert (np.abs(random - vector) <= step + slack).all()


def test_int8_is_right_on_average_where_it_is_drawn():
    codec, vector, draw, times = codecs.find("int8"), numbers(256), drawn(), 4000
    mean = np.mean([codec.decode(codec.encode(vector, draw), 256) for _ in range(times)], axis=0)
    # A rounded number has a standard deviation of half a step at most; 5 of them for the largest of 256.
    assert (np.abs(mean - vector) <= 5 * steps_of(vector) / 2 / np.sqrt(times)).all()


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(arrays(np.float32, st.integers(1, 200), elements=st.floats(-128, 128, width=32)))
def test_what_was_rounded_once_comes_back_to_the_bit(name, vector):
    codec, count = codecs.find(name), len(vector)
    once = codec.decode(codec.encode(vector, None), count)
    again = codec.decode(codec.encode(once, None), count)
    assert (again == once).all()


SIMPLE = ((np.arange(200) * 37 % 101 - 50) / 64).astype(np.float32)  # exact on every machine
DIGESTS = {
    "float32": "d3fa3b64",
    "bfloat16": "e745cb04",
    "int8": "237249b2",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_on_every_machine(name):
    array = codecs.find(name).encode(SIMPLE, drawn(5))
    assert hashlib.sha256(array.tobytes()).hexdigest()[:8] == DIGESTS[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_found_where_they_arrive(name, odd):
    codec, vector = codecs.find(name), numbers(130)
    vector[70] = odd
    adapter = {"a.lora_A.weight": vector.reshape(2, 65)}
    with pytest.raises(AdmissionError, match=r"NaN|infinite"):
        unpack(*pack(adapter, codec, drawn()), AdapterSpec.of(adapter), codec)


@pytest.mark.parametrize(
    ("at", "change"),
    [(3, lambda _: 128), (1003, lambda byte: byte | 128), (1000, lambda byte: byte | 1)],
    ids=["a step of -128", "a scale below 0", "a scale of more bits"],
)
def test_int8_that_is_never_written_is_refused(at, change):
    codec, adapter = codecs.find("int8"), {"a.lora_A.weight": numbers(1000).reshape(10, 100)}
    array, described = pack(adapter, codec)
    array = array.copy()
    array[at] = change(array[at])
    described = type(described)(described.spec, described.codec, hashlib.sha256(array.data).hexdigest())
    with pytest.raises(AdmissionError, match="not of codec int8"):
        unpack(array, described, AdapterSpec.of(adapter), codec)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_sent_is_what_arrives(name):
    codec = codecs.find(name)
    adapter = {"a.lora_A.weight": numbers(130).reshape(2, 65), "a.lora_B.weight": numbers(10, 1).reshape(5, 2)}
    array, described = pack(adapter, codec)
    arrived = unpack(array, described, AdapterSpec.of(adapter), codec)
    expected = rounded(adapter, codec)
    assert all((arrived[key] == expected[key]).all() for key in adapter)


def test_every_codec_that_a_recipe_may_ask_for_is_a_file_of_that_name():
    files = {
        entry.name.removesuffix(".py") for entry in resources.files(codecs).iterdir() if entry.name.endswith(".py")
    }
    assert files - {"__init__", "interface"} == set(NAMES)
    assert [codecs.find(name).name for name in NAMES] == list(NAMES)
    with pytest.raises(LookupError, match="no codec is called 'zip'"):
        codecs.find("zip")
