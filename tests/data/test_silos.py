"""Finding silos in every layout, and a silo's configuration."""

import shutil

import pytest

from silotune.data.silos.corpus import chosen_rows
from silotune.data.silos.sources import find_runs, find_silos, listed_silos
from silotune.errors import DataError
from silotune.settings import SiloSource

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


def folder_of(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / "silos" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "silos"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("b/data.jsonl", r"silos/b: a silo without rows: it holds no train\.\*"),
        ("b/Train.jsonl", r"b/Train\.jsonl: looks like a train file and cannot be read as one"),
        ("a/test.jsonl.xz", r"a/test\.jsonl\.xz: looks like a test file"),
        ("a/train.2.xlsx", r"a/train\.2\.xlsx: looks like a train file"),
        ("b/test.jsonl", r"b/test\.jsonl: a silo without rows: it has a test and no train file"),
        ("c.train.xlsx", r"c\.train\.xlsx: looks like a train file"),
    ],
)
@pytest.mark.parametrize("pattern", ["", "/*"])
def test_a_silo_that_is_misnamed_or_empty_is_not_passed_over(tmp_path, name, says, pattern):
    folder = folder_of(tmp_path, **{"a__train.jsonl": ROW, name.replace("/", "__"): ROW})
    if name == "c.train.xlsx" and pattern:
        return  # a pattern may match files that are no silos
    with pytest.raises(DataError, match=says):
        find_silos(f"{folder}{pattern}")


def test_a_link_must_not_lead_out_of_the_silos_folder(tmp_path):
    folder = folder_of(tmp_path, **{"a__rows.jsonl": ROW, "b__train.jsonl": ROW})
    (folder / "a" / "train.jsonl").symlink_to(folder / "a" / "rows.jsonl")
    assert [silo.name for silo in find_silos(str(folder))] == ["a", "b"]
    (folder / "b" / "test.jsonl").symlink_to(folder / "a" / "rows.jsonl")
    with pytest.raises(DataError, match=r"b/test\.jsonl: a link that leads out of the silo's folder"):
        find_silos(str(folder))


def test_two_silos_of_one_name_are_refused_however_alike(tmp_path):
    folder = folder_of(tmp_path, **{"a__train.jsonl": ROW, "t1.jsonl": ROW, "t2.jsonl": ROW})
    train = str(folder / "a" / "train.jsonl")
    listed = [SiloSource(name="a", train=train, test=str(folder / name)) for name in ("t1.jsonl", "t2.jsonl")]
    with pytest.raises(DataError, match="two silos are called 'a'"):
        listed_silos(listed)
    composed = [SiloSource(name=name, train=train) for name in ("caf\u00e9", "cafe\u0301")]
    with pytest.raises(DataError, match="two silos are called"):
        listed_silos(composed)
    with pytest.raises(DataError, match=r"data\.silos\[0\]\.train: .*train\.jsonl is named twice"):
        listed_silos([SiloSource(name="a", train=[train, train])])
    assert len(find_silos([str(folder / "a"), str(folder / "a")])) == 1


@pytest.mark.parametrize("pattern", ["x" * 5000, "a\0b", "~nosuchuser/x"])
def test_names_that_no_file_can_have_are_told(pattern):
    with pytest.raises(DataError, match=r"data\.silos: "):
        find_silos(pattern)


def test_the_folder_of_a_run_is_no_silo(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.jsonl").write_text(ROW)
    for run in ("run1", "runs/first", "runs/second"):
        (tmp_path / run).mkdir(parents=True)
        for file in ("recipe.toml", "environment.json"):
            (tmp_path / run / file).write_text("")
    (tmp_path / "begun" / ".unfinished").mkdir(parents=True)
    for pattern in (str(tmp_path / "*"), str(tmp_path)):
        assert [silo.name for silo in find_silos(pattern)] == ["a"]
    assert sorted(find_runs([str(tmp_path / "*")])) == ["begun", "run1", "runs/first", "runs/second"]
    assert sorted(find_runs([str(tmp_path)]))[0].endswith("/begun") and len(find_runs([str(tmp_path)])) == 4
    (tmp_path / "runs" / "notes.md").write_text("")
    (tmp_path / "runs" / "gone").mkdir()
    (tmp_path / "run1" / "adapter").mkdir()
    assert [silo.name for silo in find_silos([str(tmp_path / "*"), str(tmp_path / "a")])] == ["a"]
    (tmp_path / "deep" / "b").mkdir(parents=True)
    (tmp_path / "deep" / "b" / "train.jsonl").write_text(ROW)
    assert [silo.name for silo in find_silos(str(tmp_path / "*" / "[ab]*"))] == ["b"]  # run1/adapter is in a run
    shutil.rmtree(tmp_path / "deep")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: a silo without rows"):
        find_silos(str(tmp_path / "*"))


def test_backslashes_between_folders_are_told(tmp_path):
    with pytest.raises(DataError, match=r"nothing matches .*silos.*\. Write / between folders, not a backslash\."):
        find_silos(str(tmp_path / "silos\\*"))
