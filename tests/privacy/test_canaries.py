"""Unique words planted in the silos' text are in nothing that leaves a silo or stays behind."""

import base64
import gzip
import json
import tempfile
import zlib
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from tests.conftest import make_tokenizer, write_silo
from tests.federation.helpers import client_app, run
from tests.real import helpers

import silotune
from silotune.federation.messages import FIELDS
from silotune.recipe import dump_recipe

CANARIES = {"ash": "Zyqquatorblax", "birch": "Mnuvvikresto", "cedar": "Ploxxidaneum"}


def forms(word):
    """The word in every encoding that a message or file could use: (name, bytes)."""
    plain = word.encode()
    yield "utf-8", plain
    yield "lower", plain.lower()
    yield "utf-16", word.encode("utf-16-le")
    yield "utf-16-be", word.encode("utf-16-be")
    yield "utf-32", word.encode("utf-32-le")
    yield "hex", plain.hex().encode()
    yield "reversed", plain[::-1]
    yield "rot13", bytes((b - 84) % 26 + 97 for b in plain.lower())
    yield "url", quote(word, safe="").replace("a", "%61").encode()
    for shift in range(3):  # base64 depends on where in the text the word begins
        coded = base64.b64encode(b"\x00" * shift + plain)
        yield f"base64 at {shift}", coded[4 if shift else 0 : -4]
    ids = make_tokenizer()(word)["input_ids"]
    yield "token ids", ", ".join(map(str, ids)).encode()
    yield "token ids, dense", ",".join(map(str, ids)).encode()
    for width in (2, 4, 8):
        yield f"token ids of {width} bytes", b"".join(int(i).to_bytes(width, "little") for i in ids)


def unpacked(data):
    """The bytes and what they may be a compressed form of."""
    yield data
    for unpack in (gzip.decompress, zlib.decompress):
        try:
            yield unpack(data)
        except (OSError, EOFError, zlib.error):
            continue


def find(data, where):
    for silo, word in CANARIES.items():
        for name, form in forms(word):
            for piece in unpacked(data):
                assert form not in piece and form not in piece.lower(), f"{silo}'s canary ({name}) in {where}"


@pytest.fixture
def planted(tmp_path):
    for index, (name, word) in enumerate(CANARIES.items()):
        write_silo(tmp_path / "planted" / name, 6, 50 * index, extra=word)
    return {"silos": "planted/*"}


def test_the_search_finds_a_canary_in_every_form():
    for _, form in forms(CANARIES["ash"]):
        with pytest.raises(AssertionError, match="ash's canary"):
            find(b"..." + form + b"...", "here")
    with pytest.raises(AssertionError):
        find(gzip.compress(CANARIES["birch"].encode()), "here")


def test_no_canary_in_messages_logs_checkpoints_metrics_or_report(
    make_recipe, planted, tmp_path, monkeypatch, capfd, caplog
):
    from silotune.federation import inline

    states = []
    seen = 0

    def look(request, reply, silo):
        nonlocal seen
        for message in (request, reply):
            for part in get_all_nested_objects(message).values():
                find(part.deflate(), f"{message.metadata.message_type} of {silo}")
            find(repr(message).encode(), "a message's repr")
            seen += 1

    monkeypatch.setattr(inline, "make_client_app", client_app(look))
    recipe = make_recipe(data=planted, wire={"codec": "int8"})
    done = silotune.train(recipe, out=tmp_path / "run", watch=lambda event: states.append(repr(event)))
    assert seen == 2 * 3 * 6
    files = [path for path in done.path.rglob("*") if path.is_file()]
    assert {
        "report.html",
        "metrics.jsonl",
        "ledger.jsonl",
        "log.txt",
        "README.md",
        "state.safetensors",
        "round-0002.safetensors",
    } <= {p.name for p in files}
    for path in files:
        find(path.read_bytes(), str(path))
    find("\n".join(states).encode(), "events")
    captured = capfd.readouterr()
    find((captured.out + captured.err + caplog.text).encode(), "what was printed or logged")


@pytest.mark.real
def test_no_canary_in_any_file_of_a_simulation(make_recipe, planted, tmp_path, monkeypatch):
    """Ray's session while it lives (logs, sockets, state), Flower's home, the run's folder, and what is printed."""
    own_tmp = Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))
    for name, folder in (("TMPDIR", own_tmp), ("FLWR_HOME", tmp_path / "flwr"), ("SILOTUNE_HOME", tmp_path / "home")):
        monkeypatch.setenv(name, str(folder))
    recipe, run = tmp_path / "recipe.toml", tmp_path / "run"
    settings = {"engine": "simulation", "workers": 2, "threads": 1}
    recipe.write_text(dump_recipe(make_recipe(data=planted, federation=settings)), encoding="utf-8")
    process = helpers.start("train", recipe, "--out", run)
    helpers.until(lambda: helpers.ledger_lines(run, kind="train", direction="up", round=2) >= 3, process)
    stopped = psutil.Process(process.pid)
    stopped.suspend()
    seen = search(own_tmp, run)
    stopped.resume()
    out, err = process.communicate(timeout=helpers.PATIENCE)
    assert process.returncode == 0, err + out
    find((out + err).encode(), "what was printed")
    assert any("session_" in path and "/logs/worker" in path for path in seen) and any(
        "log.txt" in path for path in seen
    )
    assert any("report.html" in path for path in search(own_tmp, run, tmp_path / "flwr"))
    own_tmp.rmdir()


def search(*folders):
    """Look for canaries in all files below some folders; returns the files."""
    seen = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            try:
                find(path.read_bytes(), str(path))
            except FileNotFoundError:  # a file of progress, replaced meanwhile
                continue
            seen.append(str(path))
    return seen


def test_no_canary_in_what_is_said_when_things_go_wrong(make_recipe, planted, tmp_path, monkeypatch, caplog, capfd):
    """A crash whose exception quotes a row, and rows that cannot be tokenised, tell nothing of the row."""
    from silotune.training import loop

    word = CANARIES["ash"]

    def crash(*_):
        raise RuntimeError(f"could not digest {word}")

    monkeypatch.setattr(loop, "train_round", crash)
    events = []
    with pytest.raises(silotune.FederationError) as error:
        silotune.train(make_recipe(data=planted), out=tmp_path / "run", watch=events.append)
    assert "unexpected RuntimeError" in str(error.value)
    find(str(error.value).encode() + repr(events).encode(), "the error")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            find(path.read_bytes(), str(path))
    captured = capfd.readouterr()
    find((captured.out + captured.err + caplog.text).encode(), "what was printed or logged")


def test_a_bad_row_is_told_by_line_and_field_only(make_recipe, planted, tmp_path):
    train = tmp_path / "planted" / "ash" / "train.jsonl"
    row = json.loads(train.read_text().splitlines()[0])
    train.write_text(json.dumps({"instruction": row["instruction"], "response": None}) + "\n")
    with pytest.raises(silotune.DataError, match="field 'response' must be text, not null") as error:
        silotune.train(make_recipe(data=planted), out=tmp_path / "run")
    find(str(error.value).encode(), "the error")
    assert not (tmp_path / "run").exists()


def test_the_client_takes_no_path_from_the_server(make_recipe, tmp_path):
    """What a server may say is in the job, and a job has no place for a path to text."""
    from silotune.settings import Job

    assert set(Job.model_fields) == {
        "name", "run", "seed", "base", "lora", "max_length", "system", "training", "holdout", "algorithm",
        "codec", "minimum", "max_share",
    }  # fmt: skip
    sent = []
    run(
        make_recipe(),
        tmp_path / "run",
        client_app(lambda request, reply, silo: sent.append(dict(request.content[FIELDS]))),
    )
    assert sent and all(str(tmp_path) not in json.dumps(fields) for fields in sent)
