"""A consortium works on one run, and a run whose process was killed is none."""

import pytest

from silotune.consortium.folder import RUNNING, create, now_running, running
from silotune.errors import InputError
from silotune.settings.consortium import ConsortiumSettings


def test_one_run_at_a_time_and_none_after_a_kill(tmp_path):
    made = create(tmp_path / "lungs", ConsortiumSettings(name="lungs", host="fed.example.org"))
    assert now_running(made) is None
    with running(made, tmp_path / "run"):
        assert now_running(made) == tmp_path / "run"
        left = (made.folder / RUNNING).read_text()
        with pytest.raises(InputError, match="another run goes on"), running(made, tmp_path / "other"):
            pass
    (made.folder / RUNNING).write_text(left)  # as a process that was killed leaves it
    assert now_running(made) is None
    with running(made, tmp_path / "again"):
        assert now_running(made) == tmp_path / "again"
