"""Error feedback: what rounding takes of a silo's updates is sent later, and nothing is lost over the rounds."""

import numpy as np
import pytest

from silotune.silo.outbound import RESIDUAL, written
from silotune.wire import codecs
from silotune.wire.manifest import unpack

FLOAT32, BFLOAT16, INT8 = (codecs.find(name) for name in ("float32", "bfloat16", "int8"))


def update(seed, *names):
    random = np.random.default_rng(seed)
    return {name: (random.standard_normal((3, 40)) * 1e-3).astype(np.float32) for name in names or ("a", "b")}


def draw(seed):
    return np.random.Generator(np.random.Philox(seed))


def arrived(left, codec):
    return unpack(left.array, left.manifest, left.manifest.spec, codec)


def test_sent_and_kept_add_up_to_all_updates():
    remembered, sent, meant = {}, np.zeros((3, 40)), np.zeros((3, 40))
    for round_ in range(20):
        left = written(update(round_), INT8, draw(round_), remembered)
        sent += arrived(left, INT8)["a"]
        meant += update(round_)["a"]
        remembered = left.remembered
    assert np.abs(sent + remembered[RESIDUAL + "a"] - meant).max() < 1e-8
    assert np.abs(remembered[RESIDUAL + "a"]).max() < 1e-4  # it does not grow


def test_the_error_is_that_of_what_was_meant():
    for codec, low, high in ((BFLOAT16, 1e-3, 3e-3), (INT8, 3e-3, 2e-2)):
        left = written(update(0), codec, draw(0), {})
        meant, sent = np.stack(list(update(0).values())), np.stack(list(arrived(left, codec).values()))
        assert left.codec_error == pytest.approx(np.linalg.norm(meant - sent) / np.linalg.norm(meant))
        assert low < left.codec_error < high
    assert written(update(0), FLOAT32, draw(0), {}).codec_error == 0
    assert written({"a": np.zeros((3, 40), np.float32)}, INT8, draw(0), {}).codec_error == 0


def test_only_error_feedback_remembers():
    assert not written(update(0), FLOAT32, draw(0), {}).remembered
    assert not written(update(0), BFLOAT16, draw(0), {}).remembered
    assert set(written(update(0), INT8, draw(0), {}).remembered) == {RESIDUAL + "a", RESIDUAL + "b"}


def test_what_else_is_remembered_stays():
    before = {RESIDUAL + "b": np.ones((3, 40), np.float32), "control/a": np.ones(2, np.float32)}
    after = written(update(0, "a"), INT8, draw(0), before).remembered
    assert set(after) == {*before, RESIDUAL + "a"}
    assert all((after[name] == value).all() for name, value in before.items())


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e6, 65.0])
def test_an_update_that_is_refused_leaves_the_memory_as_it_was(number):
    """Else what rounding took of it would come with the next, which is taken."""
    broken = update(0)
    broken["a"][0, 0] = number
    before = {RESIDUAL + "a": np.ones((3, 40), np.float32) * 1e-3}
    left = written(broken, INT8, draw(0), before)
    assert left.remembered == before and left.codec_error == 0 and not left.usable
    assert written(update(0), INT8, draw(0), before).usable
