"""Leaks: test rows that stand in training text, exactly and nearly."""

import pytest
from tests.data.helpers import write_records

from silotune.data.read.reading import Reading, read_rows
from silotune.data.read.rows import Row, Turn
from silotune.data.silos import corpus, leaks
from silotune.data.silos.corpus import chosen_rows, leaks_of
from silotune.data.silos.leaks import Leaks
from silotune.data.silos.sources import SiloFiles, find_silos
from silotune.settings import DataSettings, PoolSettings

STORY = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def row(question, answer="the answer of it all"):
    return Row((Turn("user", question), Turn("assistant", answer)), 1)


def find(**silos):
    """The leaks of silos that are given as (train, test)."""
    train, test = (
        [(name, number, row) for name, split in silos.items() for number, row in enumerate(split[which])]
        for which in (0, 1)
    )
    return leaks.find(list(silos), train, test)


def test_exact_leaks_are_found_across_silos():
    found = find(a=([row("x")], [row("y"), row("q")]), b=([row(" y\n"), row("z")], [row("z")]))
    assert found == {"a": Leaks((0,), (), 0), "b": Leaks((0,), (), 1)}


def test_near_leaks_hold_four_fifths_of_the_runs():
    words = STORY.split()
    runs = len(words) + 5 - 4
    for changed in range(6):
        # each word changed at an end takes one run of five away
        other = " ".join([*(f"w{i}" for i in range(changed)), *words[changed:]])
        (found,) = find(a=([row(other.upper() + "!", "the answer of it all indeed")], [row(STORY)])).values()
        assert bool(found.near) == ((runs - changed) / runs >= 0.8), changed
        assert not found.exact


def test_case_marks_and_wide_letters_make_no_difference():
    wide = "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in STORY)
    (found,) = find(a=([row(wide.replace(" ", ", "))], [row(STORY)])).values()
    assert found.near == (0,)


def test_languages_without_blanks_are_compared_by_character():
    text = "今日は天気がとても良いので散歩に行きましょう"
    (found,) = find(a=([row(text + "か", "はい、行きましょう")], [row(text, "はい、行きましょう")])).values()
    assert found.near == (0,)


def test_a_common_template_is_no_leak():
    template = "classify the following complaint into one of the eight classes that the bureau uses today: "
    train = [row(template + f"complaint {i}", f"class {i}") for i in range(30)]
    test = [row(template + f"other matter {i}", f"class {i}") for i in range(30)]
    (found,) = find(a=(train, test)).values()
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


@pytest.mark.parametrize(
    ("train", "test", "near"),
    [
        (("a b", "c"), ("a  B!", "c"), True),
        (("a b", "c"), ("a b", "d"), False),
        (("a b", "c d e"), ("a b", "c d"), False),
        (("...", "?"), ("!!!", "-"), False),
    ],
)
def test_rows_of_few_words_are_compared_as_a_whole(train, test, near):
    (found,) = find(a=([row(*train)], [row(*test)])).values()
    assert not found.exact and bool(found.near) == near


INSTRUCTION = " ".join(f"word{number}" for number in range(55))


@pytest.mark.parametrize(("trains", "tests"), [(400, 9), (20, 2), (8, 3), (4, 1)])
def test_an_instruction_that_few_test_rows_share_is_no_leak(trains, tests):
    """It is a template because the training rows of any silo share it."""

    def rows(name, count):
        return [row(f"{INSTRUCTION} {name} asks {i}", f"{name} {i}") for i in range(count)]

    found = find(a=(rows("a", trains), rows("b", tests)), c=(rows("d", trains), []))
    assert found["a"].all == frozenset()


@pytest.mark.parametrize("copies", [1, 5, 9])
def test_a_text_that_several_training_rows_nearly_repeat_is_a_leak(copies):
    others = [row(f"story {i} of something else altogether, told {i} times", f"and {i} more") for i in range(100)]
    near = [row(STORY, f"the answer of it all, {copy}") for copy in range(copies)]
    (found,) = find(a=([*others, *near], [row(STORY)])).values()
    assert found.near == (0,) and found.own == 1


def test_an_exact_leak_is_found_however_often_it_stands_there():
    found = find(a=([row(STORY)] * 50, [row("other")]), b=([row("x")], [row(STORY)] * 50))
    assert found["b"] == Leaks(tuple(range(50)), (), 0) and found["a"] == Leaks()


def test_shared_instructions_and_equal_rows_do_not_slow_it_down():
    """Every test row shares 51 runs with every training row; pair by pair that would be 3 * 10^8 of them."""
    silos = {
        f"s{silo}": (
            [row(f"{INSTRUCTION} {silo} {i}") for i in range(60)] + [row("equal")] * 60,
            [row(f"{INSTRUCTION} test {silo} {i}") for i in range(60)] + [row("equal")] * 60,
        )
        for silo in range(40)
    }
    wanted = leaks._Wanted()
    for number, test in enumerate(silos["s0"][1]):
        wanted.add("s0", number, test)
    for train, _ in silos.values():
        for one in train:
            wanted.look_in("s0", one)
    assert max(map(len, wanted.trains.values())) == leaks.TEMPLATE + 1
    assert all(len(leaked.exact) == 60 and not leaked.near for leaked in find(**silos).values())


def folders(tmp_path, **silos):
    for name, files in silos.items():
        (tmp_path / name).mkdir(exist_ok=True)
        for split, questions in files.items():
            write_records(tmp_path / name / f"{split}.jsonl", [{"prompt": q, "completion": "x"} for q in questions])
    return find_silos(str(tmp_path))


def test_which_file_is_whose_is_part_of_what_is_kept(tmp_path):
    one, two, both = [write_records(tmp_path / f"{name}.jsonl", [{"prompt": q, "completion": "x"} for q in qs])
                      for name, qs in (("1", "ab"), ("2", "cd"), ("3", "bc"))]  # fmt: skip

    def exact(first, second):
        silos = [SiloFiles("A", (str(one),), (str(first),)), SiloFiles("B", (str(both),), (str(second),))]
        folder = leaks_of(silos, Reading(), 0.1, 0)
        return [leaks.read(folder, name).exact for name in "AB"]

    assert exact(two, two) == [(0,), (0,)]
    assert exact(two, one) == [(0,), (0, 1)]
    assert exact(one, two) == [(0, 1), (0,)]


def test_what_is_kept_is_not_read_again(tmp_path, monkeypatch):
    silos = folders(tmp_path, a={"train": "abcdef"}, b={"train": "cdefgh", "test": "xyz"})
    folder = leaks_of(silos, Reading(), 0.3, 0)
    monkeypatch.setattr(corpus, "read_rows", None)
    assert leaks_of(silos, Reading(), 0.3, 0) == folder
    assert corpus.counted_rows(silos[0], Reading()) == (6, 0)


def test_a_pool_is_read_once_for_all_its_silos(tmp_path, monkeypatch):
    path = write_records(tmp_path / "all.jsonl", [{"prompt": f"q{i % 30}", "completion": "x"} for i in range(60)])
    pool = PoolSettings(train=str(path), law="iid", silos=10)
    silos = corpus.silos_of(DataSettings(pool=pool), 0)
    read = []
    monkeypatch.setattr(
        corpus, "read_rows", lambda sources, reading: (read.append(sources), read_rows(sources, reading))[1]
    )
    folder = leaks_of(silos, Reading(), 0.2, 0)
    assert len(read) == 2
    found = [leaks.read(folder, silo.name) for silo in silos]
    tested = {number for silo in silos for number in chosen_rows(silo, 60, 0, 0.2, 0).test.tolist()}
    assert {number for one in found for number in one.exact} == {n for n in tested if (n + 30) % 60 not in tested}
