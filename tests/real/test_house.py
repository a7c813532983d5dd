"""A silo's own house, with real processes and two users: nothing that is sent runs, and nothing else is to be had."""

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import psutil
import pytest
from tests.conftest import write_silo
from tests.real import helpers
from tests.real.consortium import part_of

import silotune
from silotune.federation.server import _job
from silotune.federation.superlink import NAMEPLATE
from silotune.recipe import dump_recipe
from silotune.silo.house import user

pytestmark = pytest.mark.real


CANARY = "canary-7f3a-of-the-clinic"
FOREIGN = """
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client_app = ClientApp()
server_app = ServerApp()

@client_app.query()
def look(message, context):
    text = "".join(path.read_text() for path in Path({data!r}).iterdir())
    return Message(RecordDict({{"r": ConfigRecord({{"text": text}})}}), reply_to=message)

@server_app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(1)
    asked = [Message(RecordDict(), node, "query", ttl=600.0) for node in nodes]
    for reply in grid.send_and_receive(asked, timeout=600):
        print("GOT", reply.error if reply.has_error() else dict(reply.content), flush=True)
"""
ATTACK = """
import ctypes, json, os, socket, sys
from pathlib import Path
place, worker, files = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
got = []
for file in files:
    try:
        path = Path(file)
        got.append(str(list(path.iterdir())) if path.is_dir() else path.read_bytes()[:50].hex())
    except OSError:
        pass
for name in ("mem", "environ", "maps", "fd", "cwd", "root"):
    try:
        path = Path(f"/proc/{worker}/{name}")
        got.append(os.readlink(path) if name in ("cwd", "root") else str(list(path.iterdir())) if name == "fd" else path.open("rb").read(1))
    except OSError:
        pass
if ctypes.CDLL(None, use_errno=True).ptrace(16, worker, 0, 0) == 0:
    got.append("attached")
try:
    os.kill(worker, 9)
    got.append("killed")
except OSError:
    pass
from silotune.silo.local_socket import ask
from silotune.wire.envelope import Envelope
job = Path(sys.argv[0]).with_name("job.json").read_text()
def other(**changes):
    changed = json.loads(job)
    changed["training"] |= changes
    return json.dumps(changed)
train = {"round": 1, "held": "0" * 64, "counted": 0}
for asked in (
    Envelope("down", "join", {"job": other(rounds=999999)}),
    Envelope("down", "join", {"job": job}),
    Envelope("down", "train", {"job": other(steps=1, batch=1), **train}),
    Envelope("down", "train", {"job": job, **train, "round": 7}),
):
    got.append(ask(Path(place), asked, 600).failure or "ANSWERED")
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(place)
    peer.sendall(b"GET /etc/passwd HTTP/1.1\\r\\n\\r\\n")
print(json.dumps([str(one) for one in got]))
"""


@pytest.fixture
def ground():
    """A folder that every user may walk through: pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="house"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def users(ground):
    """Two users of this machine, for as long as the test lasts."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("useradd", "userdel", "setpriv", "unshare"))):
        pytest.skip("two users can be made by root only, with util-linux and useradd")
    names = [f"silo{kind}{os.getpid()}" for kind in "wc"]
    for name in names:
        subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name], check=True)
    worker, carrier = map(user, names)
    try:
        yield worker, carrier, python_of(carrier)
    finally:
        for name in names:
            subprocess.run(["userdel", name], check=False, capture_output=True)


PACKAGES = os.pathsep.join((str(Path(silotune.__file__).parents[1]), str(Path(psutil.__file__).parents[1])))


def python_of(who):
    """A Python of this version that another user can run: this one may lie in somebody's home."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            subprocess.run(
                [python, "-c", "import silotune.federation.carrier, torch"], user=who.number, group=who.group,
                extra_groups=[], cwd="/", env={"PYTHONPATH": PACKAGES, "PATH": os.environ["PATH"]}, check=True,
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("another user can run no Python of this version here")


def private_text(ground, worker=None):
    """A silo's folder with a canary in every row, the worker's alone."""
    folder = ground / "text"
    write_silo(folder, 20, 0, CANARY)
    if worker is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, worker.number, worker.group)
            path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


def foreign_app(ground, data):
    """A Flower app that reads a silo's text."""
    folder = ground / "foreign"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(NAMEPLATE.replace("nothing:", "foreign:").replace("silotune", "foreign"))
    (folder / "foreign.py").write_text(FOREIGN.format(data=str(data)))
    return folder


def test_on_the_old_layout_a_foreign_app_reads_a_silos_text(ground, tiny_base, deployment):
    """The test that the next one can fail."""
    data = private_text(ground)
    deployment.superlink()
    deployment.supernode(f'data="{data}" base="{tiny_base}"')
    said = deployment.flwr("run", foreign_app(ground, data), "test", "--stream")
    assert "GOT" in said and CANARY in said


def attacked(python, carrier, ground, worker, house, files):
    """What the attack got, run by hand as the carrier's user."""
    done = subprocess.run(
        [python, ground / "attack.py", house / "meet" / "worker", str(worker.pid), *files],
        user=carrier.number, group=carrier.group, extra_groups=[], cwd="/", capture_output=True, text=True, check=False,
        env={"PYTHONPATH": PACKAGES, "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def foreign_run(consortium, app):
    """Whoever has the server's own machine starts a foreign app there, past silotune: its server part runs."""
    secret = consortium.folder / "executor.secret"
    settings = tomllib.loads((consortium.folder / "consortium.toml").read_text())
    address, home = f"127.0.0.1:{settings['superlink_port']}", consortium.folder.parent / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink]\ndefault = "x"\n[superlink.x]\naddress = "{address}"\n'
                                      f'root-certificates = "{consortium.folder}/ca.pem"\n')  # fmt: skip
    here = Path(sys.executable).parent
    environment = {**os.environ, "FLWR_HOME": str(home), "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    executor = subprocess.Popen(
        [here / "flower-superexec", "--runtime-api-address", address, "--root-certificates", consortium.folder / "ca.pem",
         "--superexec-auth-secret-file", secret],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        done = subprocess.run([here / "flwr", "run", app, "x", "--stream"], env=environment, capture_output=True, text=True,
                              timeout=helpers.PATIENCE, check=False)  # fmt: skip
        return done.stdout + done.stderr
    finally:
        os.killpg(executor.pid, signal.SIGKILL)
        executor.wait()


def test_in_a_house_of_two_users_neither_a_foreign_app_nor_the_carriers_user_gets_anything(
    ground, users, make_recipe, tiny_base, tmp_path, consortium
):
    worker, carrier, python = users
    data = private_text(ground, worker)
    base = shutil.copytree(tiny_base, ground / "base")
    for path in base.iterdir():
        path.chmod(0o644)
    consortium.up()
    place, house = consortium.invite("clinic"), ground / "house"
    helpers.run("silo", "join", place, "--data", data, "--base", base, "--folder", house,
                "--users", f"{worker.name},{carrier.name}")  # fmt: skip
    rules = (house / "policy.toml").read_text()
    (house / "policy.toml").write_text(
        rules.replace("min_rows = 8", "min_rows = 1")
        .replace("rounds_per_run = 1000", "rounds_per_run = 9")
        .replace("min_silos = 2", "min_silos = 1")
    )
    environment = {"OMP_NUM_THREADS": "1", "SILOTUNE_HOME": str(house / "worker" / "cache"), "PYTHONPATH": PACKAGES}
    examined = helpers.run("silo", "doctor", house, env=environment, python=python)
    assert f"worker as {worker.name}, carrier as {carrier.name}" in examined and "WRONG" not in examined
    process = consortium.start("clinic", "silo", "up", house, env=environment, python=python)
    helpers.until(lambda: (house / "meet" / "worker").exists(), process)
    said = foreign_run(consortium, foreign_app(ground, data))
    assert "GOT" in said and CANARY not in said and "the message is not of schema" in said, said + consortium.logs()
    recipe = make_recipe(federation={"silos": 1, "minimum": 1, "threads": 1})
    path, out = tmp_path / "recipe.toml", tmp_path / "run"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    consortium.train(path, out)
    assert "It is the silos' own word" in html.unescape((out / "report.html").read_text(encoding="utf-8"))
    own = house / "worker"
    assert all(path.exists() for path in (own / "memory" / "memory.json", own / "ledger.jsonl"))
    running = part_of(process, "silo worker")
    assert running.uids().effective == worker.number
    assert part_of(process, "silo carrier").uids().effective == carrier.number
    (ground / "job.json").write_text(_job(recipe, "1" * 16).model_dump_json())
    (ground / "attack.py").write_text(ATTACK)
    files = [
        data,
        *data.iterdir(),
        own,
        own / "memory",
        own / "ledger.jsonl",
        house / "silo.toml",
        house / "policy.toml",
    ]
    rounds, joined, other, beyond = attacked(python, carrier, ground, running, house, files)  # and nothing of any file
    assert "rounds_per_run = 9" in rounds and joined == "ANSWERED", "what the policy allows is answered: with counts"
    assert "another job than the one with which this silo joined" in other and "asks for round 7" in beyond
    lines = [json.loads(line) for line in (own / "ledger.jsonl").read_text().splitlines()]
    assert any("rounds_per_run" in str(line["fields"].get("failure")) for line in lines)
    assert any("header has" in str(line["fields"].get("inadmissible")) for line in lines)
    consortium.train(path, tmp_path / "again")
    assert helpers.adapter(out) == helpers.adapter(tmp_path / "again"), "the federation goes on"
