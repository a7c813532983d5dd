"""Envelopes on a stream: whole, or refused before anything is allocated for what they claim."""

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from silotune.errors import AdmissionError
from silotune.wire import codecs, framing, manifest
from silotune.wire.envelope import SCHEMA, Envelope, failure

ADAPTER = {
    "a.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.lora_B.weight": np.ones((4, 2), np.float32),
}
UPDATE = {"steps": 3, "loss": 1.5, "tokens": 40, "loss_tokens": 20, "examples": 4, "seconds": 0.5, "codec_error": 0.0}


def update(codec="float32"):
    array, described = manifest.pack(ADAPTER, codecs.find(codec))
    return Envelope("up", "train", UPDATE, array, described)


def written(envelope):
    made = framing.frame(envelope)
    assert made.bytes == len(made.head) + made.array.nbytes
    return made.head + bytes(made.array)


def head(**changes):
    made = {"schema": SCHEMA, "direction": "down", "kind": "join", "fields": {"job": "{}"}, **changes}
    text = json.dumps({key: value for key, value in made.items() if value is not None}).encode()
    return framing.LENGTH.pack(len(text)) + text


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
def test_what_is_written_is_read(codec):
    sent = update(codec)
    found = framing.read(io.BytesIO(written(sent)), "up", 1 << 20)
    assert found.fields == sent.fields and found.manifest == sent.manifest
    assert found.vector.dtype == sent.vector.dtype and found.vector.tobytes() == sent.vector.tobytes()
    assert written(found) == written(sent)


def test_one_without_an_array_and_a_failure_are_read_too():
    for sent in (Envelope("down", "join", {"job": "{}"}), failure("train", "no rows")):
        assert framing.read(io.BytesIO(written(sent)), sent.direction, 0) == sent


class Ends:
    """A stream that gives a byte at a time, and must not be asked for more than `most`."""

    def __init__(self, data, most):
        self.data, self.most = io.BytesIO(data), most

    def readinto(self, buffer):
        assert len(buffer) <= self.most
        return self.data.readinto(buffer[:1])


def test_a_stream_that_drips_gives_the_same():
    data = written(update())
    assert framing.read(Ends(data, len(data)), "up", 1 << 20).fields == UPDATE


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "ended within"),
        (b"GET / HTTP/1.1\r\n\r\n", "header has"),
        (framing.LENGTH.pack(framing.MAX_HEADER + 1), "header has"),
        (framing.LENGTH.pack(9) + b"{}", "ended within"),
        (framing.LENGTH.pack(2) + b"[]", "cannot be read"),
        (framing.LENGTH.pack(2) + b"{}", "cannot be read"),
        (framing.LENGTH.pack(4) + b"\xff\xfe\x00\x01", "cannot be read"),
        (framing.LENGTH.pack(40_000) + b"[" * 40_000, "cannot be read"),
        (head(schema=SCHEMA + 1), "not of schema"),
        (head(direction="up"), "does not go down"),
        (head(direction=["down"]), "does not go down"),
        (head(kind="shell"), "cannot be read"),
        (head(kind=None), "cannot be read"),
        (head(fields=["job"]), "cannot be read|not the declared"),
        (head(fields={"job": "{}", "path": "/etc"}), "not the declared ones"),
        (head(fields={"job": 3}), "must be str"),
        (head(bytes=8, dtype="<f4", manifest="{}"), "ended within|cannot be read"),
        (head(bytes=1 << 40, dtype="<f4", manifest="{}"), "at most 1000 are taken"),
        (head(bytes=-1, dtype="<f4", manifest="{}"), "cannot be read"),
        (head(bytes=True, dtype="<f4", manifest="{}"), "cannot be read"),
        (head(bytes=8, dtype="|O", manifest="{}"), "cannot be read"),
        (head(bytes=6, dtype="<f4", manifest="{}"), "cannot be read"),
    ],
)
def test_what_is_no_envelope_is_refused(data, words):
    with pytest.raises(AdmissionError, match=words):
        framing.read(io.BytesIO(data), "down", 1000)


@given(st.integers(0, 400), st.integers(0, 255))
def test_no_changed_byte_gives_anything_but_an_envelope_or_a_refusal(place, value):
    data = bytearray(written(update()))
    data[place % len(data)] = value
    with contextlib.suppress(AdmissionError):
        framing.read(io.BytesIO(bytes(data)), "up", 1 << 20)


def test_a_cut_one_is_refused_wherever_it_ends():
    data = written(update())
    for end in range(len(data)):
        with pytest.raises(AdmissionError):
            framing.read(io.BytesIO(data[:end]), "up", 1 << 20)
