"""Datasets of the hub: through the datasets library, and one clear message where it cannot be had."""

import pytest
from tests.data.helpers import rows_in

from silotune.data import hub
from silotune.data.reading import Reading, read_rows
from silotune.data.store import content_key
from silotune.errors import DataError


def test_offline_it_says_so_in_one_line():
    with pytest.raises(DataError) as error:
        rows_in("hf:nobody/nothing")
    assert str(error.value).startswith("hf:nobody/nothing: the dataset cannot be had (")
    assert "or give files" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c", "hf:a b", "hf:a:b:c", "hf:../x", "hf:a@", "hf:/etc"])
def test_what_is_no_id_is_refused(source):
    with pytest.raises(DataError, match="not of the form hf:OWNER/NAME"):
        hub.load(source)


def test_rows_come_from_the_dataset_that_the_id_names(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"question": f"q{i}", "answer": name, "n": i} for i in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = [row for _, row in read_rows(["hf:me/clinic:small@test[:5%]", "hf:other"], Reading())]
    assert [row.turns[0].content for row in rows] == ["q0", "q1", "q2"] * 2 and rows[1].line == 2
    assert asked == [("me/clinic", "small", "test[:5%]"), ("other", None, "train")]
    assert content_key(["hf:me/a"], Reading()) == content_key(["hf:me/a"], Reading())
