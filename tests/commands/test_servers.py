"""`silotune serve` and `silotune watch` end well at Ctrl-C, at whatever moment it comes, and say what is in their way."""

import json
import logging
import signal
import socket

import pytest
import typer
import uvicorn
from tests.report.helpers import make_run

import silotune
from silotune.federation.run import RunFolder


def press_at(monkeypatch, owner, name):
    """Ctrl-C once, as something is called for the first time."""
    was, pressed = getattr(owner, name), []

    def called(*arguments, **more):
        if not pressed:
            pressed.append(name)
            signal.raise_signal(signal.SIGINT)
        return was(*arguments, **more)

    monkeypatch.setattr(owner, name, called)
    return pressed


MOMENTS = {
    "told": (typer, "echo"),
    "loop": (uvicorn.Config, "get_loop_factory"),
    "coroutine": (uvicorn.Server, "serve"),
    "loaded": (uvicorn.Config, "load"),
    "started": (uvicorn.Server, "startup"),
    "going": (uvicorn.Server, "main_loop"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("command", ["serve", "watch"])
def test_ctrl_c_ends_a_server_well(call, run, monkeypatch, command, moment):
    pressed = press_at(monkeypatch, *MOMENTS[moment])
    code, out, err = call(command, run, "--port", 0, "--json")
    assert pressed and code == 0 and err == "" and json.loads(out)["event"] == "serving"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("command", "owner", "name"), [("serve", silotune, "open_run"), ("watch", RunFolder, "recipe")]
)
def test_ctrl_c_before_there_is_a_server_is_that_of_any_command(call, run, monkeypatch, command, owner, name):
    press_at(monkeypatch, owner, name)
    assert call(command, run) == (130, "", "silotune: stopped.\n")


def test_other_libraries_log_handlers_stay_open(call, run, monkeypatch):
    """Setting up logging anew closes every handler of the process, and absl's closes the stream that it writes to."""
    closed = []
    handler = logging.StreamHandler()
    monkeypatch.setattr(handler, "close", lambda: closed.append(True))
    press_at(monkeypatch, uvicorn.Server, "startup")
    assert call("serve", run, "--port", 0)[0] == 0 and not closed


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "127.0.0.2", "example.org", "127.0.0.1 ", ""])
def test_a_run_is_watched_from_this_machine_only(call, tmp_path, host):
    make_run(tmp_path / "run", rounds=3, done=1)
    code, out, err = call("watch", tmp_path / "run", "--host", host)
    assert code == 2 and out == "" and "ssh -L" in err


@pytest.mark.parametrize("command", ["serve", "watch"])
def test_what_is_in_the_way_is_told(call, run, tmp_path, command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = call(command, run, "--port", port)
        assert code == 2 and out == "" and f"127.0.0.1:{port}: cannot listen there" in err
    assert call(command, tmp_path)[0] == 2
