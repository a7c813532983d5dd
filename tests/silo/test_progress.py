"""Progress that others can see, and work that nobody waits for any more."""

import pytest

from silotune.errors import Interrupted, SilotuneError
from silotune.silo.progress import Progress, ask_to_stop, call_off, read_progress


def test_progress_is_seen_whatever_a_silo_is_called(tmp_path):
    for name in ("ash", "a/b", "\N{HIBISCUS}" * 64):
        Progress(tmp_path, name, 3, "train")(step=1)
    seen = read_progress(tmp_path)
    assert seen.keys() == {"ash", "a/b", "\N{HIBISCUS}" * 64} and seen["ash"]["step"] == 1


def test_work_that_was_called_off_ends_and_other_work_goes_on(tmp_path):
    call_off(tmp_path, "ash", 3, "train")
    with pytest.raises(SilotuneError, match="called off"):
        Progress(tmp_path, "ash", 3, "train")(step=1)
    with pytest.raises(SilotuneError, match="called off"):
        Progress(tmp_path, "ash", 3, "train").still_wanted()
    for other in (("birch", 3, "train"), ("ash", 4, "train"), ("ash", 3, "evaluate")):
        Progress(tmp_path, *other)(step=1)
    ask_to_stop(tmp_path)
    with pytest.raises(Interrupted):
        Progress(tmp_path, "birch", 3, "train")(step=2)
    Progress(None, "ash", 3, "train")(step=1)


def test_a_late_silos_work_is_called_off(make_recipe, tmp_path, monkeypatch):
    """The exchange says so, where silos work on this machine."""
    from tests.federation.helpers import Network, client_app

    from silotune.federation import exchange, local, run
    from silotune.federation.events import RunContext
    from silotune.wire.envelope import Envelope

    now = [0.0]
    monkeypatch.setattr(exchange.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(exchange.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    recipe = make_recipe()
    grid = Network(client_app(), local.prepare_silos(recipe).silos)
    grid.slow = lambda _: True
    line = exchange.Transport(grid, run.create(recipe, tmp_path / "run"), RunContext(3, True, scratch=tmp_path), 10)
    request = Envelope("down", "join", {"job": "{}"})
    answers = list(exchange.exchange(line, {1: request, 2: request}, {1: "ash"}, 0, 9.0))
    assert {answer.problem for answer in answers} == {"no answer within 9 s"}
    with pytest.raises(SilotuneError, match="called off"):
        Progress(tmp_path, "ash", 0, "join").still_wanted()
    assert len(list(tmp_path.glob("off-*"))) == 1
