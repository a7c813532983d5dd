"""Robust aggregation keeps its stated bounds with 2 hostile silos of 10, and is the mean where nobody is hostile."""

import numpy as np
import pytest

from silotune.aggregation import robust, spool
from silotune.aggregation.collectors import collector_of
from silotune.aggregation.interface import Cohort, Contribution, Round, collect
from silotune.aggregation.mean import plain
from silotune.model.adapter import AdapterSpec, flatten, initial_adapter
from silotune.recipe import check_recipe
from silotune.settings import FederationSettings

SPEC = AdapterSpec.of({f"m{i}.lora_{k}.weight": ((2, 9) if k == "A" else (7, 2)) for i in range(4) for k in "AB"})
B = SPEC.with_role("B")
HOSTILE = ("s3", "s7")


def updates(names, hostile=False):
    """Ten silos that agree but for noise; of two the update is turned round and a hundred times as large."""
    rng = np.random.default_rng(0)
    common = {name: rng.normal(scale=0.01, size=shape) for name, shape in SPEC.shapes if name in names}
    found = {}
    for number in range(10):
        factor = -100 if hostile and f"s{number}" in HOSTILE else 1
        found[f"s{number}"] = {
            name: (factor * (value + rng.normal(scale=0.003, size=value.shape))).astype(np.float32)
            for name, value in common.items()
        }
    return found


def run(collector, found, weights=None, names=SPEC.names, order=None):
    weights = weights or dict.fromkeys(found, 1)
    round_ = Round(initial_adapter(SPEC, 0), names, Cohort(weights))
    given = [Contribution(silo, found[silo], weights[silo]) for silo in order or found]
    return collect(collector, round_, lambda ask: iter(given))


def norm(vector):
    return float(np.linalg.norm(vector.astype(np.float64)))


@pytest.mark.parametrize("weights", [None, {f"s{i}": 1 + i % 4 for i in range(10)}])
def test_two_hostile_silos_move_clipped_updates_by_no_more_than_the_bound(weights):
    found = updates(SPEC.names, hostile=True)
    result = flatten(run(robust.clip, found, weights).update)
    weights = weights or dict.fromkeys(found, 1)
    median = float(np.median([norm(flatten(update)) for update in found.values()]))
    honest = {silo: update for silo, update in found.items() if silo not in HOSTILE}
    clipped = {silo: flatten(update) * min(1, median / norm(flatten(update))) for silo, update in honest.items()}
    total = sum(weights[silo] for silo in honest)
    alone = sum(weights[silo] / total * vector for silo, vector in clipped.items())
    share = 1 - total / sum(weights.values())
    bound = 2 * share * median
    assert norm(result - alone) <= bound * (1 + 1e-6)
    assert median <= max(norm(flatten(update)) for update in honest.values())
    unprotected = flatten(run(plain, found, weights).update)
    assert norm(unprotected - alone) > 10 * bound, "the same silos own the plain mean"


def test_two_hostile_silos_leave_trimmed_means_between_the_honest_values():
    found = updates(B, hostile=True)
    result = flatten(run(robust.trimmed(0.2), found, names=B).update)
    honest = np.stack([flatten(update) for silo, update in found.items() if silo not in HOSTILE])
    assert (result >= honest.min(0)).all() and (result <= honest.max(0)).all()
    unprotected = flatten(run(plain, found, names=B).update)
    assert (unprotected < honest.min(0)).any() or (unprotected > honest.max(0)).any()


def test_where_nobody_is_hostile_the_direction_stays():
    honest = updates(B)
    expected = flatten(run(plain, honest, names=B).update)
    for collector in (robust.clip, robust.trimmed(0.2)):
        assert norm(flatten(run(collector, honest, names=B).update) - expected) < 0.1 * norm(expected)


def test_equal_updates_are_their_own_aggregate():
    one = updates(B)["s0"]
    same = {f"s{number}": one for number in range(5)}
    for collector in (robust.clip, robust.trimmed(0.3)):
        assert np.abs(flatten(run(collector, same, names=B).update) - flatten(one)).max() < 1e-8
    still = {silo: {name: np.zeros_like(value) for name, value in one.items()} for silo in same}
    for collector in (robust.clip, robust.trimmed(0.3)):
        assert not flatten(run(collector, still, names=B).update).any()


def test_the_trimmed_mean_is_that_of_the_values_in_between():
    values = np.random.default_rng(0).normal(size=(7, 23)).astype(np.float32)
    expected = np.sort(values.astype(np.float64), axis=0)[2:5].mean(0)
    assert robust.trimmed_mean(values, 0.3) == pytest.approx(expected, rel=1e-6)
    assert (robust.trimmed_mean(values, 0.49) == np.median(values, axis=0)).all()
    assert np.isfinite(robust.trimmed_mean(values[:4], 0.4999999999)).all(), "something is always left"


def test_it_is_the_same_in_pieces_of_any_size(monkeypatch):
    found = updates(B, hostile=True)
    for collector in (robust.clip, robust.trimmed(0.2)):
        whole = flatten(run(collector, found, names=B).update)
        monkeypatch.setattr(spool, "CHUNK", 7)
        assert np.abs(flatten(run(collector, found, names=B).update) - whole).max() < 1e-9
        monkeypatch.undo()


@pytest.mark.parametrize("collector", [robust.clip, robust.trimmed(0.2)])
def test_order_of_arrival_changes_no_bit_and_nothing_is_left_on_the_disk(collector, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = updates(B, hostile=True)
    first = run(collector, found, names=B)
    again = run(collector, found, names=B, order=sorted(found, reverse=True))
    assert flatten(first.update).tobytes() == flatten(again.update).tobytes() and first.silos == again.silos
    assert first.e_agg == again.e_agg and not list(tmp_path.iterdir())
    assert run(collector, {}, weights={"s": 1}) is None


def test_the_recipe_says_which():
    assert collector_of(FederationSettings()) is plain
    assert collector_of(FederationSettings(robust="clip", minimum=3)) is robust.clip


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"trim": 0.3}, "`trim` and `robust = \"none\"` do not go together"),
        ({"robust": "clip"}, "bounds nothing where 2 silos answer"),
        ({"robust": "trimmed"}, "numbers far apart may mean the same product"),
        ({"robust": "trimmed", "algorithm": "ffa"}, "say so with `weights = \"uniform\"`"),
        ({"robust": "trimmed", "algorithm": "ffa", "weights": "uniform", "minimum": 4}, "leaves out no value where 4"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_with_the_reason(given, says):
    with pytest.raises(Exception, match=says):
        check_recipe({"federation": given}, "recipe")
    fine = {"robust": "trimmed", "algorithm": "ffa", "weights": "uniform", "minimum": 5}
    assert collector_of(check_recipe({"federation": fine}, "recipe").federation) not in (plain, robust.clip)
