"""A silo's worker on its socket: who may ask, what is answered, what stands in the ledger, and that it outlives its peers."""

import json
import os
import socket
import threading

import pytest

from silotune.data.silos.sources import SiloConfig, SiloFiles
from silotune.errors import AdmissionError, InputError
from silotune.silo import local_socket
from silotune.silo.worker import Worker
from silotune.wire import framing
from silotune.wire.envelope import SCHEMA, Envelope, failure

JOIN = Envelope("down", "join", {"job": "{}"})


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Starts workers, and stops them with the test."""
    monkeypatch.setattr(local_socket, "PATIENCE", 1.0)
    stop, threads = threading.Event(), []
    silo = SiloConfig(SiloFiles("ash", ("x",)), ledger=tmp_path / "ledger.jsonl")

    def go(users=None, answered=None, silo=silo, name="s"):
        place, ready = tmp_path / name, threading.Event()
        given = {os.geteuid()} if users is None else users
        echo = answered or (lambda request, _: failure(request.kind, f"I heard {request.fields['job']}"))
        worker = Worker(silo, answers=dict.fromkeys(("join", "train"), echo))
        thread = threading.Thread(target=local_socket.serve, args=(place, worker, given, stop, ready.set))
        thread.start()
        threads.append(thread)
        assert ready.wait(10)
        return place

    yield go
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def ledger(tmp_path):
    return [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]


def test_an_envelope_is_answered_and_its_answer_is_in_the_ledger(house, tmp_path):
    place = house()
    for number in range(3):
        asked = Envelope("down", "join", {"job": str(number)})
        assert local_socket.ask(place, asked, 10).failure == f"I heard {number}"
    lines = ledger(tmp_path)
    assert [line["fields"]["failure"] for line in lines] == ["I heard 0", "I heard 1", "I heard 2"]
    assert {line["direction"] for line in lines} == {"up"} and all(line["bytes"] > 50 for line in lines)


def test_another_user_is_turned_away_and_noted(house, tmp_path):
    place = house(users={os.geteuid() + 1})
    with pytest.raises((AdmissionError, OSError)):
        local_socket.ask(place, JOIN, 10)
    (line,) = ledger(tmp_path)
    assert f"user {os.geteuid()} of this machine may not ask" in line["fields"]["inadmissible"]


def test_an_envelope_that_only_claims_to_be_large_takes_no_memory(house, tmp_path):
    place = house()
    text = json.dumps({"schema": SCHEMA, "direction": "down", "kind": "train", "fields": {}, "manifest": "{}",
                       "dtype": "<f4", "bytes": 4 << 30}).encode()  # fmt: skip
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(place))
        peer.sendall(framing.LENGTH.pack(len(text)) + text)
    assert local_socket.ask(place, JOIN, 10).failure == "I heard {}"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2{}", b"\0", b""])
def test_what_is_no_envelope_is_noted_and_the_next_is_heard(house, tmp_path, data):
    place = house()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(place))
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        with peer.makefile("rb", buffering=0) as stream:
            assert framing.read(stream, "up", 0).failure
    assert local_socket.ask(place, JOIN, 10).failure == "I heard {}"
    refused, answered = ledger(tmp_path)
    assert "inadmissible" in refused["fields"] and refused["direction"] == "down"
    assert answered["fields"]["failure"] == "I heard {}"


def test_a_peer_that_says_nothing_keeps_nobody_out_for_long(house, tmp_path):
    place = house()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(place))
        assert local_socket.ask(place, JOIN, 10).failure == "I heard {}"
    assert "nothing came whole" in ledger(tmp_path)[0]["fields"]["inadmissible"]


def test_a_peer_that_goes_before_its_answer_stops_nothing(house, tmp_path):
    place = house()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(place))
        peer.sendall(framing.frame(JOIN).head)
    assert local_socket.ask(place, JOIN, 10).failure == "I heard {}"
    assert len(ledger(tmp_path)) == 2  # what left for a peer that had gone is noted too


def test_what_goes_wrong_in_answering_tells_its_kind_and_no_text(house):
    def crash(*_):
        raise RuntimeError("private words")

    place = house(answered=crash)
    said = local_socket.ask(place, JOIN, 10).failure
    assert "unexpected RuntimeError in test_local_socket.py" in said and "private" not in said


def test_what_cannot_be_entered_in_the_ledger_does_not_leave(house, tmp_path):
    silo = SiloConfig(SiloFiles("ash", ("x",)), ledger=tmp_path / "no" / "ledger.jsonl")
    said = local_socket.ask(house(silo=silo), JOIN, 10).failure
    assert "ledger cannot be written" in said and "heard" not in said


def test_a_socket_that_was_left_is_taken_and_one_that_answers_is_not(house, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    place = house()
    assert local_socket.ask(place, JOIN, 10).failure
    silo = SiloConfig(SiloFiles("ash", ("x",)))
    with pytest.raises(InputError, match="a worker answers there already"):
        local_socket.serve(place, Worker(silo), {os.geteuid()}, threading.Event())
    with pytest.raises(InputError, match="cannot listen there"):
        local_socket.serve(tmp_path / "no" / "s", Worker(silo), {os.geteuid()}, threading.Event())
    with pytest.raises(OSError):
        local_socket.ask(tmp_path / "nobody", JOIN, 10)
