"""Datasets of the hub: through the datasets library, and one clear message where it cannot be had."""

import pytest
from tests.data.helpers import rows_in

from silotune.data.read import content, hub
from silotune.data.read.content import content_key
from silotune.data.read.reading import Reading, read_rows
from silotune.errors import DataError


@pytest.fixture(autouse=True)
def nothing_loaded():
    hub.load.cache_clear()
    content._content.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """What the datasets library is asked for; its rows say which dataset they are of."""
    import datasets

    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"question": f"q{i}", "answer": name, "n": i} for i in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_offline_it_says_so_in_one_line():
    with pytest.raises(DataError) as error:
        rows_in("hf:nobody/nothing")
    assert str(error.value).startswith("hf:nobody/nothing: the dataset cannot be had (")
    assert "unset HF_HUB_OFFLINE and" in str(error.value)
    assert "or give files" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c", "hf:a b", "hf:a:b:c", "hf:../x", "hf:a@", "hf:/etc"])
def test_what_is_no_id_is_refused(source):
    with pytest.raises(DataError, match="not of the form hf:OWNER/NAME"):
        hub.load(source)


def test_rows_come_from_the_dataset_that_the_id_names(asked):
    rows = [row for _, row in read_rows(["hf:me/clinic:small@test[:5%]", "hf:other"], Reading())]
    assert [row.turns[0].content for row in rows] == ["q0", "q1", "q2"] * 2 and rows[1].line == 2
    assert [row.turns[1].content for row in rows] == ["me/clinic"] * 3 + ["other"] * 3
    assert asked == [("me/clinic", "small", "test[:5%]"), ("other", None, "train")]


def test_a_dataset_is_asked_for_once_and_known_by_its_content(asked, monkeypatch):
    keys = [content_key([source], Reading()) for source in ("hf:me/a", "hf:me/b", "hf:me/a")]
    assert keys[0] == keys[2] != keys[1]
    rows_in("hf:me/a"), rows_in("hf:me/a")
    assert asked == [("me/a", None, "train"), ("me/b", None, "train")]
    content._content.cache_clear()
    monkeypatch.setattr(content, "identity", lambda source: "another")
    assert content_key(["hf:me/a"], Reading()) != keys[0]


def test_rows_that_are_too_long_or_cannot_be_read_are_refused(monkeypatch):
    monkeypatch.setattr(hub, "load", lambda _: [{"text": "t"}, {"messages": [{"content": "x" * 700}] * 2}])
    monkeypatch.setattr(hub, "MOST_ROW", 1000)
    with pytest.raises(DataError, match="hf:a: row 2: the row is longer than"):
        rows_in("hf:a")

    def broken(_):
        yield {"text": "t"}
        raise OSError("a cut file")

    monkeypatch.setattr(hub, "load", broken)
    with pytest.raises(DataError, match=r"hf:a: the dataset cannot be read \(OSError\)"):
        rows_in("hf:a")
