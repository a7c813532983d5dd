"""One pool dealt out to silos: every row once, seeded, by each law's own shape."""

from collections import Counter

import numpy as np
import pytest
from tests.data.helpers import write_records

from silotune.data import pool
from silotune.data.corpus import silos_of
from silotune.data.reading import Reading
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


def test_pooled_silos_are_found_by_name(tmp_path):
    path = str(write_records(tmp_path / "all.jsonl", ROWS))
    data = DataSettings(pool=PoolSettings(train=path, law="field", field="ward"))
    silos = silos_of(data, 0)
    assert [silo.name for silo in silos] == ["w0", "w1", "w2", "w3"]
    assert pool.rows_of(silos[1], "train", 100).tolist() == list(range(1, 100, 4))
    assert silos_of(data, 0) == silos
