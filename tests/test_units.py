"""Units of systemd: what they say, and that systemd takes them. They are not run: that takes a machine with systemd."""

import os
import shutil
import subprocess

import pytest

from silotune.consortium.folder import create
from silotune.consortium.up import write_units as write_units_of_a_server
from silotune.settings.consortium import ConsortiumSettings
from silotune.silo.house import open_house
from silotune.silo.units import write_units
from silotune.silo.up import carried
from silotune.units import Unit, write

TWO_USERS = '[house]\nworker = "daemon"\ncarrier = "bin"\n'


@pytest.fixture
def house(tmp_path, silos):
    """Makes a silo's folder, with these lines in its settings and its policy."""

    def make(settings="", policy=""):
        folder = tmp_path / "house"
        folder.mkdir()
        (folder / "silo.toml").write_text(
            f'name = "clinic"\ndata = "{silos}/ash"\n[superlink]\naddress = "fed.example.org:8000"\nkey = "carrier/k"\n'
            + settings
        )
        (folder / "policy.toml").write_text(policy)
        return open_house(folder)

    return make


def values(place):
    """What a unit's file says, by key; a key that stands there more than once has all its lines."""
    lines = [line for line in place.read_text().splitlines() if line and line[0] not in "#["]
    return {key: [line.partition("=")[2] for line in lines if line.partition("=")[0] == key] for key in
            (line.partition("=")[0] for line in lines)}  # fmt: skip


def commands(place):
    """What it starts, without the Python that runs it."""
    return values(place)["ExecStart"][0].partition(" -m silotune.cli ")[2]


def test_two_users_have_a_unit_each_with_nothing_of_the_other(house, silos):
    made = house(TWO_USERS)
    worker, carrier = write_units(made)
    folder = made.folder
    assert commands(worker) == f"silo worker {folder}" and values(worker)["User"] == ["daemon"]
    assert commands(carrier) == " ".join(["silo", "carrier", *carried(made)]) and values(carrier)["User"] == ["bin"]
    for one in map(values, (worker, carrier)):
        assert one["ExecStartPre"][0].startswith("+") and one["ExecStartPre"][0].endswith(f"silo prepare {folder}")
        assert one["ProtectSystem"] == ["strict"] and one["NoNewPrivileges"] == ["yes"] and one["UMask"] == ["0077"]
    assert values(worker)["PrivateNetwork"] == ["yes"] and "PrivateNetwork" not in values(carrier)
    assert values(worker)["ReadWritePaths"] == [f'"{folder}/worker" "{folder}/meet"']
    assert values(carrier)["ReadWritePaths"] == [f'"{folder}/carrier"']
    assert values(carrier)["InaccessiblePaths"] == [f'"-{silos}/ash" "-{folder}/worker"']


def test_one_user_has_one_unit_that_runs_both(house):
    made = house(policy='isolation = "none"\n')
    (whole,) = write_units(made)
    assert commands(whole) == f"silo up {made.folder}" and values(whole)["ReadWritePaths"] == [f'"{made.folder}"']


def test_what_lies_elsewhere_may_be_written_too(house):
    worker, _ = write_units(house(TWO_USERS))
    assert "/elsewhere" not in worker.read_text()
    made = open_house(worker.parents[1])
    changed = made.folder / "silo.toml"
    changed.write_text('memory = "/elsewhere/m"\nledger = "/elsewhere/l/ledger.jsonl"\n' + changed.read_text())
    worker, carrier = write_units(open_house(made.folder))
    assert '"/elsewhere/m" "/elsewhere/l"' in values(worker)["ReadWritePaths"][0]
    assert '"-/elsewhere/m" "-/elsewhere/l"' in values(carrier)["InaccessiblePaths"][0]


def test_what_systemd_would_replace_stays_as_it_is(tmp_path):
    (place,) = write([Unit("x", "100%", ("silo", "up", "/a b/$HOME/%n"), "me", (tmp_path / "50%",))], tmp_path)
    text = place.read_text()
    assert "Description=100%%" in text and "'/a b/$$HOME/%%n'" in text and f'"{tmp_path}/50%%"' in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
def test_systemd_finds_nothing_wrong_with_them(house, tmp_path):
    server = create(tmp_path / "lungs", ConsortiumSettings(name="lungs", host="fed.example.org"))
    places = [write_units_of_a_server(server), *write_units(house(TWO_USERS, 'isolation = "users"\n'))]
    (tmp_path / "house" / "silo.toml").write_text((tmp_path / "house" / "silo.toml").read_text().replace(TWO_USERS, ""))
    (tmp_path / "house" / "policy.toml").write_text('isolation = "none"\n')
    places += write_units(open_house(tmp_path / "house"))
    assert len(places) == 4
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *places], capture_output=True, text=True, check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "info"},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    broken = places[0].with_name("broken.service")
    broken.write_text(places[0].read_text().replace("ProtectSystem=strict", "ProtectSistem=strict"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", broken], capture_output=True, text=True, check=False
    )
    assert "ProtectSistem" in done.stderr, "a unit with a mistake in it is found"
