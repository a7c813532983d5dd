"""Ctrl-C at any time ends a run, says truly what is saved, and nothing is lost."""

import signal

import pytest

import silotune


def ctrl_c_at(kind):
    """A watcher that presses Ctrl-C once, when something of a kind happens."""
    pressed = []

    def watch(event):
        if event.kind == kind and not pressed:
            pressed.append(event)
            signal.raise_signal(signal.SIGINT)

    return watch


SAVED = {
    "joined": "no round is saved yet",
    "round_start": "the score of the base model is saved, and no round yet",
    "finishing": "round 2 is saved, the report is not written",
}


@pytest.mark.parametrize("moment", SAVED)
def test_ctrl_c_is_heard_and_the_words_are_true(make_recipe, tmp_path, moment):
    out = tmp_path / "run"
    with pytest.raises(silotune.Interrupted) as error:
        silotune.train(make_recipe(), out=out, watch=ctrl_c_at(moment))
    assert str(error.value) == f"Stopped by the user; {SAVED[moment]}. Go on with: silotune train --resume {out}"
    assert not (out / "report.html").exists()
    assert silotune.train(resume=out).folder.report_file.exists()
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) in ([], [".lock"])


def test_what_a_kill_has_left_of_an_adapter_goes(make_recipe, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(silotune.Interrupted):
        silotune.train(make_recipe(), out=out, watch=ctrl_c_at("finishing"))
    (out / ".adapter-killed").mkdir()
    (out / ".adapter-killed" / "adapter_model.safetensors").touch()
    silotune.train(resume=out)
    assert not list(out.glob(".adapter-*"))
