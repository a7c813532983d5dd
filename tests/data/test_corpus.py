"""A silo's text: what it is refused for, and that any name of a file will do."""

import os

import pytest
from tests.conftest import make_tokenizer
from tests.data.helpers import write_records

from silotune.data.read.reading import Reading
from silotune.data.seeds import derive
from silotune.data.silos import leaks
from silotune.data.silos.corpus import leaks_of, load_corpus
from silotune.data.silos.sources import SiloConfig, SiloFiles, find_silos
from silotune.errors import DataError

ROW = {"prompt": "red", "completion": "blue"}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def load(tmp_path, tokenizer):
    def make(train, test=None, drop_leaks=False, max_length=40):
        splits = [(str(write_records(tmp_path / f"{name}.jsonl", rows)),) if rows else () for name, rows in
                  (("train", train), ("test", test))]  # fmt: skip
        files = SiloFiles("a", *splits)
        silo = SiloConfig(files, holdout=0.2, drop_leaks=drop_leaks, leaks=leaks_of([files], Reading(), 0.2, 0))
        return load_corpus(silo, tokenizer, max_length, 0)

    return make


def questions(*names):
    return [{"prompt": name, "completion": "blue stone"} for name in names]


def test_preference_pairs_are_not_for_supervised_fine_tuning(load):
    with pytest.raises(DataError, match=r"train\.jsonl: the rows are preference pairs, .* data.fields = \{ prompt"):
        load([{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(5)])


def test_rows_that_are_all_lost_are_refused_in_either_split(load):
    lost = [{"system": "green " * 60, "prompt": str(i), "completion": "blue"} for i in range(4)]
    with pytest.raises(DataError, match=r"train\.jsonl: of none of 4 rows does a token of the response fit into"):
        load(lost, questions("a"))
    with pytest.raises(DataError, match=r"test\.jsonl: of none of 4 rows .* data.max_length = 40"):
        load(questions("a"), lost)
    assert load(questions("a"), [*lost, *questions("b")]).test.lost == 4


def test_leaks_that_are_dropped_must_leave_something(load):
    known, new = questions("red", "blue"), questions("green")
    kept = load(known, [*known, *new], drop_leaks=True)
    assert (kept.dropped, kept.test.rows) == (2, 1)
    with pytest.raises(
        DataError, match=r"all 2 test rows also stand in training text, so data.drop_leaks leaves nothing"
    ):
        load(known, known, drop_leaks=True)


def test_no_row_to_hold_out_is_refused(load):
    with pytest.raises(DataError, match="'a' has one row and no test file: there is nothing to hold out"):
        load([ROW])


def test_a_silo_without_a_test_row_is_told_what_to_do(tmp_path, tokenizer, monkeypatch):
    from silotune.data.silos import corpus

    path = str(write_records(tmp_path / "a.jsonl", questions("a", "b")))
    nothing = corpus.Chosen(corpus.np.arange(2), corpus.np.arange(0))
    monkeypatch.setattr(corpus, "chosen_rows", lambda *_: nothing)
    with pytest.raises(DataError, match=r"silo 'a' gets no row to test on. Give it more test rows, or no test file"):
        load_corpus(SiloConfig(SiloFiles("a", (path,), (path,)), holdout=0.1), tokenizer, 40, 0)


def test_names_that_are_not_utf_8_will_do(tmp_path, tokenizer):
    write_records(tmp_path / "train.jsonl", questions(*"abcdef")).rename(tmp_path / os.fsdecode(b"n\xff.train.jsonl"))
    (files,) = find_silos(str(tmp_path))
    assert files.name == os.fsdecode(b"n\xff")
    silo = SiloConfig(files, holdout=0.3, leaks=leaks_of([files], Reading(), 0.3, 0))
    assert load_corpus(silo, tokenizer, 40, 0).test.rows == 2
    assert leaks.read(silo.leaks, files.name).all == frozenset()
    (tmp_path / os.fsdecode(b"n\xff.train.jsonl")).write_bytes(b"{}")
    with pytest.raises(DataError) as error:
        load_corpus(silo, tokenizer, 40, 0)
    assert str(error.value).isprintable() and "n\\udcff.train.jsonl:1: " in str(error.value)


def test_seeds_of_all_names_differ():
    names = ["a", "n\udcff", "n\udcfe", "\ud800", "ÿ"]
    assert len({derive(0, "holdout", name) for name in names}) == len(names)
