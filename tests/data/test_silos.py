"""Finding silos in every layout, and a silo's configuration."""

from dataclasses import replace
from pathlib import Path

import pytest

from silotune.data.corpus import chosen_rows
from silotune.data.silos import SiloConfig, find_silos
from silotune.errors import DataError

ROW = '{"prompt": "Q", "completion": "A"}\n'


def test_folders_flat_files_and_single_silos(tmp_path):
    for name in ("b", "a"):
        (tmp_path / "deep" / name).mkdir(parents=True)
        (tmp_path / "deep" / name / "train.jsonl").write_text(ROW)
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / f"{name}.train.jsonl").write_text(ROW)
    (tmp_path / "flat" / "a.test.jsonl").write_text(ROW)
    for pattern in ("deep/*", "deep", "flat", "flat/*.train.jsonl"):
        assert [silo.name for silo in find_silos(str(tmp_path / pattern))] == ["a", "b"], pattern
    flat = find_silos(str(tmp_path / "flat"))
    assert flat[0].test and not flat[1].test
    assert [silo.name for silo in find_silos(str(tmp_path / "deep" / "a"))] == ["a"]
    with pytest.raises(DataError, match="two silos are called 'a'"):
        find_silos([str(tmp_path / "deep"), str(tmp_path / "flat")])
    with pytest.raises(DataError, match="nothing matches"):
        find_silos(str(tmp_path / "none*"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no train\.\*"):
        find_silos(str(tmp_path / "empty"))


def test_without_a_test_file_a_seeded_share_is_held_out(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "train.jsonl").write_text(
        "".join(f'{{"prompt": "q{i}", "completion": "a"}}\n' for i in range(20))
    )
    files = find_silos(str(tmp_path / "s"))[0]
    chosen = chosen_rows(files, 20, 0, 0.2, 5)
    assert (len(chosen.train), len(chosen.test)) == (16, 4)
    assert sorted([*chosen.train, *chosen.test]) == list(range(20))
    assert (chosen_rows(files, 20, 0, 0.2, 5).test == chosen.test).all()
    assert (chosen_rows(files, 20, 0, 0.2, 6).test != chosen.test).any()
    with pytest.raises(DataError, match="nothing to hold out"):
        chosen_rows(files, 1, 0, 0.2, 5)


def test_configuration_survives_its_json(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "train.jsonl").write_text(ROW)
    silo = SiloConfig(find_silos(str(tmp_path / "s"))[0], base="b", threads=2, ledger=Path("/x"))
    assert SiloConfig.from_json(silo.to_json()) == silo
    assert SiloConfig.from_json(replace(silo, ledger=None).to_json()).ledger is None
