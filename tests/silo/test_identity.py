"""A silo's key: drawn once, its owner's alone to read, and what it signs."""

import pytest

from silotune.errors import InputError
from silotune.silo.identity import SMALL_ORDER, holds, proof, public_key
from silotune.silo.memory import KEY, forget

JOB = '{"run": "0123"}'


def test_it_is_drawn_once_and_nobody_else_may_read_it(tmp_path):
    root = tmp_path / "memory"
    key = public_key(root)
    assert len(key) == 64 and public_key(root) == key != public_key(tmp_path / "other")
    assert (root / KEY).stat().st_mode & 0o077 == 0 and root.stat().st_mode & 0o077 == 0


def test_a_signature_is_of_one_key_and_one_job(tmp_path):
    root = tmp_path / "memory"
    key, signature = public_key(root), proof(root, JOB)
    assert holds(key, signature, JOB)
    assert not holds(key, signature, JOB + " ")
    assert not holds(public_key(tmp_path / "other"), signature, JOB)


@pytest.mark.parametrize("key", ["", "00", "zz" * 32, "ff" * 32, "00" * 33, *sorted(SMALL_ORDER)])
@pytest.mark.parametrize("signature", ["", "0", "00" * 64, "é"])
def test_what_is_no_key_or_no_signature_holds_nothing(key, signature):
    assert not holds(key, signature, JOB)


def test_a_key_has_one_spelling(tmp_path):
    key, signature = public_key(tmp_path / "memory"), proof(tmp_path / "memory", JOB)
    assert not holds(key.upper(), signature, JOB) or key.upper() == key
    assert not holds(f"{key[:2]} {key[2:]}", signature, JOB) and not holds(key, f"{signature}\n", JOB)


def test_the_neutral_point_signs_for_nobody():
    """With it, R = the base point and s = 1 would be a signature of every job."""
    base = "5866666666666666666666666666666666666666666666666666666666666666"
    assert not holds("01" + 62 * "0", base + "01" + 62 * "0", JOB)


def test_a_file_that_is_no_key_is_told(tmp_path):
    root = tmp_path / "memory"
    public_key(root)
    (root / KEY).write_text("nothing\n")
    with pytest.raises(InputError, match=r"identity\.pem: not the key of a silo\. Delete it"):
        proof(root, JOB)


def test_it_is_forgotten_with_the_rest(tmp_path):
    root = tmp_path / "memory"
    public_key(root)
    forget(root)
    assert not root.exists()
