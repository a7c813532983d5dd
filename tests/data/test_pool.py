"""One pool dealt out to silos: every row once, seeded, by each law's own shape."""

from collections import Counter

import numpy as np
import pytest
from tests.data.helpers import write_records

from silotune.data.read.reading import Reading
from silotune.data.silos import pool
from silotune.data.silos.corpus import silos_of
from silotune.errors import DataError
from silotune.settings import DataSettings, PoolSettings

LABELS = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
ROWS = [
    {"prompt": f"q{i}", "completion": "x", "label": label, "ward": f"w{i % 4}", "note": None}
    for i, label in enumerate(LABELS)
]


@pytest.fixture
def deal(tmp_path):
    path = str(write_records(tmp_path / "all.jsonl", ROWS))
    tests = str(write_records(tmp_path / "tests.jsonl", ROWS[::5]))

    def make(seed=0, **settings):
        settings = PoolSettings(train=path, test=tests, **settings)
        return pool.deal(settings, [path], [tests], Reading(), seed)

    return make


def by_label(owners, silos):
    return [Counter(np.array(LABELS)[owners == silo].tolist()) for silo in range(silos)]


def test_iid_is_shuffled_and_equal(deal):
    dealt = deal(law="iid", silos=7)
    assert sorted(Counter(dealt.train.tolist()).values()) == [14] * 5 + [15] * 2
    assert dealt.names == tuple(f"silo-{i}" for i in range(1, 8))
    assert (dealt.train == deal(law="iid", silos=7).train).all()
    assert (dealt.train != deal(law="iid", silos=7, seed=1).train).any()
    assert len(dealt.test) == 20 and set(dealt.test.tolist()) <= set(range(7))


def test_a_field_names_the_silos(deal):
    dealt = deal(law="field", field="ward")
    assert dealt.names == ("w0", "w1", "w2", "w3")
    assert dealt.train.tolist() == [i % 4 for i in range(100)]
    assert dealt.test.tolist() == [i % 4 for i in range(0, 100, 5)]


def test_dirichlet_meets_its_extremes(deal):
    alike = by_label(deal(law="dirichlet", silos=2, alpha=1e6).train, 2)
    assert alike == [{"a": 25, "b": 15, "c": 10}] * 2
    apart = by_label(deal(law="dirichlet", silos=2, alpha=1e-3, minimum=1).train, 2)
    assert sum(1 for label in "abc" for silo in apart if silo[label] == 0) >= 2


def test_dirichlet_shares_are_drawn_as_they_should():
    settings = PoolSettings(train="x", law="dirichlet", silos=4, alpha=0.7)
    labels = np.zeros(4000, np.int64)
    shares = [
        np.bincount(pool.LAWS["dirichlet"](labels, 4, settings, np.random.default_rng(seed)), minlength=4) / 4000
        for seed in range(600)
    ]
    variance = (1 / 4) * (3 / 4) / (4 * 0.7 + 1)
    assert np.mean(shares, axis=0) == pytest.approx(0.25, abs=0.04)
    assert np.var(shares) == pytest.approx(variance, rel=0.1)


def test_quantities_fall_as_the_law_says(deal):
    sizes = np.bincount(deal(law="power", silos=4, spread=1.0).train)
    assert sizes.tolist() == [48, 24, 16, 12]
    logs = np.log([np.bincount(pool.LAWS["lognormal"](np.zeros(10**5, np.int64), 3, PoolSettings(
        train="x", law="lognormal", silos=3, spread=0.5), np.random.default_rng(seed)), minlength=3) for seed in range(300)])  # fmt: skip
    assert np.std(logs[:, 0] - logs[:, 1]) == pytest.approx(0.5 * 2**0.5, rel=0.12)


def test_shards_hold_few_labels(deal):
    silos = by_label(deal(law="shards", silos=5, shards=2).train, 5)
    assert [sum(silo.values()) for silo in silos] == [20] * 5
    assert all(len(silo) <= 2 + 1 for silo in silos) and any(len(silo) == 1 for silo in silos)


def test_every_silo_gets_its_minimum(deal):
    sizes = np.bincount(deal(law="lognormal", silos=10, spread=3.0, minimum=5).train, minlength=10)
    assert sizes.min() == 5 and sizes.sum() == 100


def test_tests_follow_the_labels_of_training(deal):
    dealt = deal(law="dirichlet", silos=2, alpha=1e-3, minimum=1)
    train, labels = by_label(dealt.train, 2), np.array(LABELS)[::5]
    for label in "abc":
        for silo in (0, 1):
            if not train[silo][label]:
                assert not ((labels == label) & (dealt.test == silo)).any()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"law": "field", "field": "none"}, r"all\.jsonl:1: field 'none' must be text or a whole number .* missing"),
        ({"law": "field", "field": "note"}, r"all\.jsonl:1: field 'note' must be text or a whole number .* missing"),
        ({"law": "dirichlet", "silos": 3, "field": "no"}, "field 'no' must be text"),
        ({"law": "iid", "silos": 60}, "100 rows are too few for 60 silos of at least 2"),
    ],
)
def test_what_cannot_be_dealt_is_refused(deal, settings, says):
    with pytest.raises(DataError, match=says):
        deal(**settings)


@pytest.fixture
def deal_rows(tmp_path):
    def make(train, test=(), fields=(), **settings):
        paths = [str(write_records(tmp_path / f"{name}.jsonl", [{"prompt": "q", "completion": "a"} | row for row in rows]))
                 for name, rows in (("train", train), ("test", test)) if rows]  # fmt: skip
        settings = PoolSettings(train=paths[0], test=paths[1:] or None, **settings)
        return pool.deal(settings, paths[:1], paths[1:], Reading(fields=fields), 0)

    return make


def test_values_are_what_they_are(deal_rows):
    dealt = deal_rows([{"ward": w} for w in ("1", " 1 ", "1")], law="field", field="ward")
    assert dealt.names == (" 1 ", "1") and dealt.train.tolist() == [1, 0, 1]
    for values, says in (
        (["1", 1], ":2: field 'ward' must be text or a whole number .* the same in all rows; here it is a number"),
        ([1, True], ":2: field 'ward' must be text or a whole number .* it is true or false"),
        (["a", " "], ":2: field 'ward' must be text or a whole number .* it is blank"),
        (["a", 1.5], ":2: field 'ward' must be text or a whole number .* it is a number"),
        (["x" * 65], ":1: the value of field 'ward' is longer than 64 characters"),
        (["a\nb"], ":1: the value of field 'ward' .* cannot be shown"),
    ):
        with pytest.raises(DataError, match=says):
            deal_rows([{"ward": value} for value in values], law="field", field="ward")


@pytest.mark.parametrize("settings", [{}, {"field": "urgent"}, {"fields": (("label", "urgent"),)}])
def test_labels_are_what_the_reader_takes_for_labels(deal_rows, settings):
    name = "urgent" if settings else "label"
    rows = [{name: number % 2 == 0} for number in range(40)]
    dealt = deal_rows(rows, law="shards", silos=2, shards=1, **settings)
    assert {tuple(np.flatnonzero(dealt.train == silo) % 2) for silo in (0, 1)} == {(0,) * 20, (1,) * 20}


def test_a_long_text_is_no_label(deal_rows):
    rows = [{"label": "a"} for _ in range(3000)]
    deal_rows([*rows, {"label": "x" * 256}], law="dirichlet", silos=2)
    with pytest.raises(
        DataError, match=r"train\.jsonl:3001: field 'label' has 500000 characters; a label has at most 256"
    ):
        deal_rows([*rows, {"label": "x" * 500_000}], law="dirichlet", silos=2)


def test_every_silo_is_tested(deal_rows):
    rows = [{"label": f"{number % 20}"} for number in range(400)]
    dealt = deal_rows(rows, rows[:30], law="dirichlet", silos=25, alpha=0.1)
    assert np.bincount(dealt.test, minlength=25).min() == 1
    labels = np.arange(400) % 20
    strange = sum(labels[row] not in labels[dealt.train == silo] for row, silo in enumerate(dealt.test))
    assert strange <= 2  # none but where its labels have no test row to spare
    with pytest.raises(
        DataError, match=r"data.pool.test: 24 rows are too few to test 25 silos. Give more rows or fewer"
    ):
        deal_rows(rows, rows[:24], law="iid", silos=25)
    wards = [{"ward": ward} for ward in "abc"]
    with pytest.raises(DataError, match=r"data.pool.test: 1 of 3 silos get no row to test on. Give rows of every silo"):
        deal_rows(wards, wards[:2], law="field", field="ward")
    with pytest.raises(DataError, match=r"test\.jsonl:2: the value of field 'ward' names no silo"):
        deal_rows(wards, [wards[0], {"ward": "z"}], law="field", field="ward")


def test_silos_are_filled_from_the_largest():
    owners = np.repeat(np.arange(4, dtype=np.int32), [50, 30, 1, 0])
    given = pool.filled(owners, 4, 5, np.random.default_rng(0))
    assert np.bincount(given).tolist() == [41, 30, 5, 5]
    assert (owners[given != owners] == 0).all()
    assert pool.filled(owners, 4, 20, np.random.default_rng(0)).tolist().count(2) == 20


def test_pooled_silos_are_found_by_name(tmp_path):
    path = str(write_records(tmp_path / "all.jsonl", ROWS))
    data = DataSettings(pool=PoolSettings(train=path, law="field", field="ward"))
    silos = silos_of(data, 0)
    assert [silo.name for silo in silos] == ["w0", "w1", "w2", "w3"]
    assert pool.rows_of(silos[1], "train", 100).tolist() == list(range(1, 100, 4))
    assert silos_of(data, 0) == silos
