"""Where a round's time went, against intervals on paper."""

import pytest

from silotune.report.timing import Clock, Work, covered, divide


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0), ([(0, 2)], 2), ([(0, 2), (1, 3)], 3), ([(5, 6), (0, 2), (1, 1.5)], 3), ([(0, 1), (1, 2)], 2)],
)
def test_length_of_a_union(intervals, length):
    assert covered(intervals) == length


def test_a_round_of_two_silos_side_by_side():
    """Trained 10-20 and 12-22, evaluated 25-28 and 24-27; the round took 30 seconds."""
    answers = [
        Work("train", "a", 20, 10),
        Work("train", "b", 22, 10),
        Work("evaluate", "a", 28, 3),
        Work("evaluate", "b", 27, 3),
    ]
    time = divide(1, 30, answers)
    assert (time.training, time.evaluation, time.rest) == (12, 4, 14)
    assert time.silos == {"a": {"train": 10, "evaluate": 3}, "b": {"train": 10, "evaluate": 3}}


def test_an_attempt_that_was_interrupted_does_not_count():
    answers = [Work("train", "a", 500, 90), Work("train", "a", 1000, 10)]
    time = divide(3, 20, answers)
    assert (time.training, time.rest) == (10, 10) and time.silos == {"a": {"train": 10}}


def test_parts_never_exceed_the_round():
    time = divide(1, 5, [Work("train", "a", 100, 50), Work("evaluate", "a", 101, 50)])
    assert time.training + time.evaluation <= 5 and time.rest >= 0
    assert divide(1, 5, []).rest == 5


def test_only_used_answers_to_work_are_taken_from_the_ledger():
    line = {"direction": "up", "silo": "a", "kind": "train", "round": 1, "late": False, "fields": {"seconds": 4.0},
            "time": "2026-01-01T00:00:10.500+00:00"}  # fmt: skip
    clock = Clock([line, {**line, "direction": "down"}, {**line, "late": True}, {**line, "fields": {"failure": "x"}}])
    assert [(work.silo, work.seconds) for work in clock.answers[1]] == [("a", 4.0)]
    (time,) = clock.times([{"round": 1, "seconds": 10.0}])
    assert (time.training, time.rest) == (4.0, 6.0)
