"""A silo's folder: read strictly, and started only as its policy says."""

import os

import pytest

from silotune.errors import InputError
from silotune.silo import house
from silotune.silo.house import can, open_house, user
from silotune.silo.up import up

LEAST = 'name = "clinic"\ndata = "text"\n[superlink]\naddress = "fed.example.org:8000"\n'


@pytest.fixture
def folder(tmp_path, silos):
    made = tmp_path / "house"
    made.mkdir()
    (silos / "ash").rename(made / "text")
    (made / "silo.toml").write_text(LEAST)
    return made


def test_a_folder_of_the_least_is_read_with_paths_of_its_own(folder):
    found = open_house(folder)
    config = found.config()
    assert config.files.name == "clinic" and config.files.train == (str(folder / "text" / "train.jsonl"),)
    assert (config.memory, config.ledger) == (folder / "worker" / "memory", folder / "worker" / "ledger.jsonl")
    assert config.own_machine and (config.min_rows, config.min_steps, config.losses) == (8, 1, True)


def test_what_is_set_reaches_the_worker(folder):
    (folder / "silo.toml").write_text(
        'name = "a"\ndata = "text"\nfields = { prompt = "instruction", response = "response" }\ntext_rows = "line"\n'
        'drop_leaks = true\nholdout = 0.25\nthreads = 3\nmemory = "/m"\n[superlink]\naddress = "h:1"\nkey = "k.pem"\n'
    )
    (folder / "policy.toml").write_text("min_rows = 30\nmin_steps = 4\nlosses = false\n")
    found = open_house(folder)
    config = found.config()
    assert found.silo.superlink.key == str(folder / "k.pem") and str(config.memory) == "/m"
    assert (config.holdout, config.threads, config.drop_leaks, config.reading.text_rows) == (0.25, 3, True, "line")
    assert (config.min_rows, config.min_steps, config.losses) == (30, 4, False)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (
            "silo.toml",
            LEAST + "port = 3\n",
            r"silo\.toml: superlink\.port: unknown key; remove it; docs/silo\.md lists",
        ),
        ("silo.toml", LEAST.replace('name = "clinic"\n', ""), r"silo\.toml: name: this key is missing"),
        ("silo.toml", LEAST.replace(":8000", ""), r"superlink\.address: "),
        ("silo.toml", "name =", r"silo\.toml: not valid TOML"),
        ("policy.toml", "max_rank = 0\n", r"policy\.toml: max_rank: "),
        ("policy.toml", 'privacy = "dp"\n', r"policy\.toml: privacy: "),
        ("policy.toml", "rounds = 3\n", r"policy\.toml: rounds: unknown key"),
        ("policy.toml", 'codecs = ["int8", "int8"]\n', r"policy\.toml: codecs: .*twice"),
    ],
)
def test_what_cannot_be_used_is_refused_by_file_and_key(folder, file, text, words):
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=words):
        open_house(folder)


def test_a_folder_without_a_silo_is_said_to_be_none(tmp_path):
    with pytest.raises(InputError, match=r"not a silo's folder, for it holds no silo\.toml"):
        open_house(tmp_path)


def test_one_user_is_enough_only_where_the_policy_says_so(folder):
    with pytest.raises(InputError, match="worker and carrier are both"):
        open_house(folder).users()
    (folder / "policy.toml").write_text('isolation = "none"\n')
    worker, carrier = open_house(folder).users()
    assert worker.number == carrier.number == os.geteuid()


def test_users_that_are_not_there_or_cannot_be_become_are_refused(folder, monkeypatch):
    (folder / "silo.toml").write_text(LEAST + '[house]\nworker = "nobody-of-that-name"\n')
    with pytest.raises(InputError, match="there is no user 'nobody-of-that-name' on this machine: useradd"):
        open_house(folder).users()
    (folder / "silo.toml").write_text(LEAST + '[house]\nworker = "root"\ncarrier = "nobody"\n')
    with pytest.raises(InputError, match="neither worker nor carrier may be root"):
        open_house(folder).users()
    (folder / "silo.toml").write_text(LEAST + '[house]\nworker = "daemon"\ncarrier = "nobody"\n')
    monkeypatch.setattr(house.os, "geteuid", lambda: 12345)
    monkeypatch.setattr(house.pwd, "getpwuid", lambda _: house.pwd.getpwnam("nobody"))
    with pytest.raises(InputError, match="only root can start parts as the users of"):
        house.require_startable(open_house(folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try what another user can read")
def test_it_does_not_start_where_the_carriers_user_can_read_the_text(folder, tmp_path):
    for place in (tmp_path.parent, tmp_path.parent.parent, tmp_path):
        before = place.stat().st_mode & 0o777
        place.chmod(before | 0o011)
    (folder / "silo.toml").write_text(LEAST + '[house]\nworker = "daemon"\ncarrier = "nobody"\n')
    nobody, text = user("nobody"), folder / "text" / "train.jsonl"
    text.parent.chmod(0o755)
    text.chmod(0o644)
    if can(nobody, "read", [text]):  # else pytest's own folder keeps others out
        with pytest.raises(InputError, match="the carrier's user, nobody, can read this"):
            up(open_house(folder), None, print)
    text.chmod(0o600)
    assert can(nobody, "read", [text]) == []
