"""Leaks: test rows that stand in training text, exactly and nearly."""

import pytest
from tests.data.helpers import write_records

from silotune.data import leaks
from silotune.data.corpus import leaks_of
from silotune.data.leaks import Leaks, Text
from silotune.data.reading import Reading
from silotune.data.rows import Row, Turn
from silotune.data.silos import find_silos

STORY = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def row(question, answer="the answer of it all"):
    return Row((Turn("user", question), Turn("assistant", answer)), 1)


def texts(**silos):
    return {name: Text(list(enumerate(train)), list(enumerate(test))) for name, (train, test) in silos.items()}


def test_exact_leaks_are_found_across_silos():
    found = leaks.find(texts(a=([row("x")], [row("y"), row("q")]), b=([row(" y\n"), row("z")], [row("z")])))
    assert found == {"a": Leaks((0,), (), 0), "b": Leaks((0,), (), 1)}


def test_near_leaks_hold_four_fifths_of_the_runs():
    words = STORY.split()
    runs = len(words) + 5 - 4
    for changed in range(6):
        # each word changed at an end takes one run of five away
        other = " ".join([*(f"w{i}" for i in range(changed)), *words[changed:]])
        (found,) = leaks.find(
            texts(a=([row(other.upper() + "!", "the answer of it all indeed")], [row(STORY)]))
        ).values()
        assert bool(found.near) == ((runs - changed) / runs >= 0.8), changed
        assert not found.exact


def test_case_marks_and_wide_letters_make_no_difference():
    wide = "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in STORY)
    (found,) = leaks.find(texts(a=([row(wide.replace(" ", ", "))], [row(STORY)]))).values()
    assert found.near == (0,)


def test_languages_without_blanks_are_compared_by_character():
    text = "今日は天気がとても良いので散歩に行きましょう"
    (found,) = leaks.find(
        texts(a=([row(text + "か", "はい、行きましょう")], [row(text, "はい、行きましょう")]))
    ).values()
    assert found.near == (0,)


def test_a_common_template_is_no_leak():
    template = "classify the following complaint into one of the eight classes that the bureau uses today: "
    train = [row(template + f"complaint {i}", f"class {i}") for i in range(30)]
    test = [row(template + f"other matter {i}", f"class {i}") for i in range(30)]
    (found,) = leaks.find(texts(a=(train, test))).values()
    assert found.all == frozenset()


def test_a_silo_is_kept_apart_from_its_own_held_out_rows(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_records(
            tmp_path / name / "train.jsonl", [{"prompt": f"{name} {i % 10}", "completion": "x"} for i in range(20)]
        )
    silos = find_silos(str(tmp_path))
    folder = leaks_of(silos, Reading(), 0.3, 0)
    for silo in silos:
        found = leaks.read(folder, silo.name)
        assert found.exact and found.own == len(found.all)
    assert leaks_of(silos, Reading(), 0.3, 0) == folder != leaks_of(silos, Reading(), 0.3, 1)


@pytest.mark.parametrize("text", ["", "...", "a", "a b c"])
def test_short_rows_are_compared_as_a_whole(text):
    (found,) = leaks.find(texts(a=([row(text or "?", "b")], [row((text or "?") + " ", "c")]))).values()
    assert not found.exact
