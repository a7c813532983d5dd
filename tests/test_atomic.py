"""Files that are whole or not there."""

import os

import pytest

from silotune import atomic


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    atomic.write_text(file, "one \N{HIBISCUS}")
    assert file.read_text(encoding="utf-8") == "one \N{HIBISCUS}"

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(file, "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and file.read_text(encoding="utf-8")[:3] == "one"
    atomic.write_text(file, "three", durable=False)
    assert file.read_text(encoding="utf-8") == "three"


def test_a_file_is_as_open_to_others_as_the_user_wants(tmp_path):
    before = os.umask(0o077)
    try:
        atomic.write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
