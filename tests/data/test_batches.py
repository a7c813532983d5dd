"""Batches: a function of seed, silo and round; each row once a pass; padding that is masked."""

from collections import Counter

import numpy as np
import pytest
from tests.data.helpers import example

from silotune.data.silos.batches import collate, collate_silos, plan_round, steps_in_round
from silotune.settings import TrainingSettings

LENGTHS = np.array([5, 9, 4, 8, 7, 3, 6, 10, 2, 11])


def rows(plan):
    return [row for step in plan for batch in step for row in batch]


def test_rounds_walk_through_whole_passes():
    settings = TrainingSettings(steps=1, batch=5, accumulation=1)
    seen = [rows(plan_round(settings, LENGTHS, 1, "s", round_)) for round_ in (1, 2, 3, 4)]
    assert Counter(seen[0] + seen[1]) == Counter(range(10)) == Counter(seen[2] + seen[3])
    assert seen[0] + seen[1] != seen[2] + seen[3]


def test_a_plan_depends_on_seed_silo_and_round_alone():
    settings = TrainingSettings(steps=3, batch=2, accumulation=2)
    plan = plan_round(settings, LENGTHS, 1, "s", 2)
    assert plan == plan_round(settings, LENGTHS, 1, "s", 2)
    assert plan not in [plan_round(settings, LENGTHS, *other) for other in ((2, "s", 2), (1, "t", 2), (1, "s", 3))]
    assert [[len(batch) for batch in step] for step in plan] == [[2, 2]] * 3


def test_rows_of_a_forward_pass_are_of_similar_length():
    plan = plan_round(TrainingSettings(steps=5, batch=2), LENGTHS, 0, "s", 1)
    spread = [max(LENGTHS[r] for r in b) - min(LENGTHS[r] for r in b) for step in plan for b in step]
    assert max(spread) <= 1


@pytest.mark.parametrize(("epochs", "expected"), [(1.0, 5), (2.0, 10), (0.5, 2), (0.01, 1)])
def test_epochs_become_steps(epochs, expected):
    assert steps_in_round(TrainingSettings(epochs=epochs, batch=2), 10) == expected


def test_more_batch_than_rows_repeats_rows():
    plan = plan_round(TrainingSettings(steps=1, batch=8), np.array([3, 4, 5]), 0, "s", 1)
    assert Counter(rows(plan)).most_common(1)[0][1] == 3


def test_padding_is_masked_and_predicts_nothing():
    batch = collate([example((5, 6, 7), (False, True, True)), example((8, 9), (False, True))], 3, "cpu")
    assert batch.ids.tolist() == [[5, 6, 7], [8, 9, 3]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.predicts.tolist() == [[True, True, False], [True, False, False]]
    assert batch.loss_tokens == 3


def test_rows_of_several_silos_in_one_batch():
    one = [example((5, 6, 7, 8), (False, False, True, True)), example((5, 6, 9), (False, False, True))]
    other = [example((4, 6, 7), (False, False, True)), example((4, 8), (False, True))]
    batch = collate_silos([one, other], 0, "cpu")
    assert batch.silos == 2 and batch.ids[:, 0].tolist() == [5, 5, 4, 4]
    assert batch.shared == 1, "the second silo's rows begin alike for one token, the first's for two"
    assert batch.loss_tokens_of_silos == [3, 2] and batch.loss_tokens == 5
    assert collate(one, 0, "cpu").loss_tokens_of_silos == [3]
