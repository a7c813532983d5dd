"""A silo's own house, with real processes: nothing that is sent runs, and no process is started for a message."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from tests.conftest import write_silo
from tests.real import helpers
from tests.real.superlink import free_port

import silotune.federation
from silotune.federation.server import _job
from silotune.recipe import dump_recipe
from silotune.silo.house import user

pytestmark = pytest.mark.real
APP = Path(silotune.federation.__file__).parent / "flower_app"


def make_house(folder, name, data, base, deployment, policy="", house="", ca=None):
    folder.mkdir()
    certificate = ca or deployment.folder / "ca.pem"
    (folder / "silo.toml").write_text(
        f'name = "{name}"\ndata = "{data}"\nbase = "{base}"\nthreads = 1\n'
        f'[superlink]\naddress = "127.0.0.1:{deployment.port}"\ncertificates = "{certificate}"\n'
        f"[house]\nport = {free_port()}\n{house}"
    )
    (folder / "policy.toml").write_text(policy)
    return folder


def part_of(process, part):
    return [child for child in helpers.family(process) if f" silo {part} " in " ".join(child.cmdline())]


def cmdlines(process):
    return [" ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)]


@pytest.fixture
def started():
    """Starts silos, and ends them with the test."""
    processes = []

    def go(folder):
        processes.append(helpers.start("silo", "up", folder, env={"OMP_NUM_THREADS": "1"}))
        return processes[-1]

    yield go
    for process in processes:
        family = helpers.family(process) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        helpers.ended(process)
        for left in helpers.gone(family, 30):
            left.kill()


def test_two_silos_in_their_houses_give_the_bits_of_inline(
    make_recipe,
    silos,
    tiny_base,
    tmp_path,
    deployment,
    started,
):
    recipe = make_recipe(data={"silos": ["silos/ash", "silos/birch"]}, federation={"silos": 2, "threads": 1})
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    helpers.run("train", path, "--out", tmp_path / "inline")
    deployment.superlink()
    policy = 'isolation = "none"\nmin_rows = 1\n'
    up = [started(make_house(tmp_path / f"house-{name}", name, silos / name, tiny_base, deployment, policy))
          for name in ("ash", "birch")]  # fmt: skip
    for process, name, part in zip(up, ("ash", "birch"), ("worker", "carrier"), strict=True):  # each is started again
        socket = tmp_path / f"house-{name}" / "meet" / "worker"
        helpers.until(socket.exists, process)
        helpers.until(lambda: part_of(process, part), process)  # noqa: B023 - it is called in this turn
        part_of(process, part)[0].kill()
    said = deployment.flwr("run", APP, "test", "--stream", "--run-config", f'recipe="{path}" out="{tmp_path}/deployed"')
    assert (tmp_path / "deployed" / "adapter").exists(), said + deployment.logs()
    assert helpers.adapter(tmp_path / "inline") == helpers.adapter(tmp_path / "deployed")
    for process in up:
        lines = cmdlines(process)
        assert not [line for line in lines if "flwr-clientapp" in line]
        assert sum("flower_supernode()" in line for line in lines) == 1, "that of a carrier that was killed has gone"
    for name in ("ash", "birch"):  # each silo's own ledger agrees with the server's about what left it
        own = (tmp_path / f"house-{name}" / "ledger.jsonl").read_text().count('"direction": "up"')
        assert own == helpers.ledger_lines(tmp_path / "deployed", silo=name, direction="up") > 0


# ------------------------------------------------------------------------------------------------ two users

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
from silotune.silo.worker import ask
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
    ours = (APP / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(ours.partition("[tool.flwr.app.config]")[0].replace("silotune_app", "foreign").replace("silotune", "foreign"))  # fmt: skip
    (folder / "foreign.py").write_text(FOREIGN.format(data=str(data)))
    return folder


def test_on_the_old_layout_a_foreign_app_reads_a_silos_text(ground, tiny_base, deployment):
    """The test that the next one can fail."""
    data = private_text(ground)
    deployment.superlink()
    deployment.supernode(f'data="{data}" base="{tiny_base}"')
    said = deployment.flwr("run", foreign_app(ground, data), "test", "--stream")
    assert "GOT" in said and CANARY in said


def test_in_a_house_of_two_users_neither_a_foreign_app_nor_the_carriers_user_gets_anything(
    ground, users, make_recipe, tiny_base, tmp_path, deployment
):
    worker, carrier, python = users
    data = private_text(ground, worker)
    base = shutil.copytree(tiny_base, ground / "base")
    for path in base.iterdir():
        path.chmod(0o644)
    shutil.copy(deployment.folder / "ca.pem", ground / "ca.pem")
    deployment.superlink()
    named = f'worker = "{worker.name}"\ncarrier = "{carrier.name}"\n'
    house = make_house(ground / "house", "clinic", data, base, deployment, "min_rows = 1\nrounds_per_run = 9\n", named, ground / "ca.pem")  # fmt: skip
    environment = {"OMP_NUM_THREADS": "1", "SILOTUNE_HOME": str(house / "cache"), "PYTHONPATH": PACKAGES}
    process = helpers.start("silo", "up", house, env=environment, python=python)
    try:
        helpers.until(lambda: (house / "meet" / "worker").exists(), process)
        said = deployment.flwr("run", foreign_app(ground, data), "test", "--stream")
        assert "GOT" in said and CANARY not in said and "the message is not of schema" in said, said + deployment.logs()
        recipe = make_recipe(data={"silos": ["silos/ash"]}, federation={"silos": 1, "minimum": 1, "threads": 1})
        path = tmp_path / "recipe.toml"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        out = tmp_path / "run"
        said = deployment.flwr("run", APP, "test", "--stream", "--run-config", f'recipe="{path}" out="{out}"')
        assert (out / "adapter").exists(), said + deployment.logs()
        assert CANARY not in said
        assert all(path.exists() for path in (house / "memory" / "memory.json", house / "ledger.jsonl"))
        (running,) = (one for one in helpers.family(process) if " silo worker " in " ".join(one.cmdline()))
        assert running.uids().effective == worker.number
        (ground / "job.json").write_text(_job(recipe, "1" * 16).model_dump_json())
        (ground / "attack.py").write_text(ATTACK)
        files = [
            data,
            *data.iterdir(),
            house / "memory",
            house / "ledger.jsonl",
            house / "silo.toml",
            house / "policy.toml",
        ]
        done = subprocess.run(
            [python, ground / "attack.py", house / "meet" / "worker", str(running.pid), *files],
            user=carrier.number, group=carrier.group, extra_groups=[], cwd="/", capture_output=True, text=True, check=False,
            env={"PYTHONPATH": PACKAGES, "PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + (house / "ledger.jsonl").read_text()
        rounds, joined, other, beyond = json.loads(done.stdout)  # and nothing of any file or process
        assert "rounds_per_run = 9" in rounds and joined == "ANSWERED", (
            "what the policy allows is answered: with counts"
        )
        assert "another job than the one with which this silo joined" in other and "asks for round 7" in beyond
        lines = [json.loads(line) for line in (house / "ledger.jsonl").read_text().splitlines()]
        assert any("rounds_per_run" in str(line["fields"].get("failure")) for line in lines)
        assert any("header has" in str(line["fields"].get("inadmissible")) for line in lines)
    finally:
        family = helpers.family(process) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        print(helpers.ended(process)[1])
        for left in helpers.gone(family, 30):
            left.kill()
