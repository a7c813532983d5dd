"""The guides for a coordinator and for members, word for word: three members on this machine, each with two users.

Blocks of `sh` in the two pages are commands, and a block of `text` that follows one is what they print. Every command
is run as it stands, but for what `PLACES`, `OPTIONS` and `NOT_RUN` declare; every line of output that is shown must be
printed, with other numbers. systemd does not run here: what `systemctl` is asked for, the test does with the unit's own
commands, users and folders.
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from tests.conftest import make_model
from tests.real import helpers
from tests.real.superlink import free_port
from tests.real.test_house import PACKAGES, python_of

import silotune
from silotune.silo.house import user
from silotune.silo.up import as_user

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
MEMBERS = {"st-mary": "clinic", "north": "bank", "harbour": "insurer"}
"""The members, and whose text of the demo each has."""
NOT_RUN = {
    "sudo python3.11 -m venv /opt/silotune": "installing takes minutes; the tests run in what was installed",
    "sudo /opt/silotune/bin/pip install -c constraints.txt .": "likewise",
    "sudo ln -s /opt/silotune/bin/silotune /usr/local/bin/silotune": "likewise",
    "sudo ufw allow 8000/tcp": "this machine's firewall is not the test's to change",
}
"""Commands that are not run, and why."""
ORDER = (
    ("operating", ("Install silotune", "Make the consortium", "Start the server", "Open the port",
                   "Invite the members"), ()),
    ("member", ("Install silotune", "Make two users, and give the text to one of them", "Join", "Examine it",
                "Start the silo"), tuple(MEMBERS)),
    ("operating", ("Compare the fingerprints", "The first run", "While a run goes on"), ()),
    ("member", ("What has left", "Pause, and stop", "Approve each job"), tuple(MEMBERS)),
    ("operating", ("Members come and go", "Renew the certificate", "Back up the folder"), ()),
    ("member", ("Leave",), ("st-mary", "north")),  # the third one has been expelled
)  # fmt: skip
"""The sections in the order in which they are followed, and by which members."""


def sections(page):
    """The blocks of code of a page by section: (language, text) in order."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.*)\n", text, flags=re.M)[1:]
    return {title: re.findall(r"^```(\w*)\n(.*?)^```", body, re.M | re.S)
            for title, body in zip(parts[::2], parts[1::2], strict=True)}  # fmt: skip


def test_every_command_of_the_guides_is_followed():
    for page in ("operating", "member"):
        followed = [title for each, titles, _ in ORDER if each == page for title in titles]
        with_commands = [title for title, found in sections(page).items() if any(kind == "sh" for kind, _ in found)]
        assert followed == with_commands
    text = "".join(block for page in ("operating", "member") for found in sections(page).values() for _, block in found)
    assert all(command in text for command in NOT_RUN)


class Machine:
    """This machine, in the place of the coordinator's and the members'."""

    def __init__(self, ground):
        self.ground, self.port, self.running, self.users = ground, free_port(), {}, []
        self.bin, self.units = ground / "bin", ground / "units"
        for folder in (self.bin, self.units, ground / "fed"):
            folder.mkdir()
        self.options = {
            "silotune consortium init": f"--listen 127.0.0.1 --port {self.port} --superlink-port {free_port()}"
        }
        """What is added to commands: the guides take the ports that they are given by default."""

    def places(self, who):
        """What stands for what in a guide that the coordinator (None) or a member follows."""
        found = [("/etc/systemd/system/", f"{self.units}/"), ("/srv/", f"{self.ground}/{who or 'coordinator'}/"),
                 ("/home/fed/", f"{self.ground}/fed/")]  # fmt: skip
        if who is None:
            return [*found, ("fed.example.org:8000", f"127.0.0.1:{self.port}"), ("fed.example.org", "127.0.0.1")]
        address = ("fed.example.org:8000", f"127.0.0.1:{self.port}")
        parts = [
            (f"silo-{part}", f"s{part[0]}{list(MEMBERS).index(who)}t{os.getpid()}") for part in ("worker", "carrier")
        ]
        return [*found, address, *parts, ("st-mary", who)]

    def here(self, text, who):
        """A guide's text with this machine's names."""
        if who is not None:  # a member's units have its name, and end with the part's
            text = re.sub(r"(silotune-silo-)st-mary-", rf"\1{who}=", text)
        for theirs, ours in self.places(who):
            text = text.replace(theirs, ours)
        return text.replace(f"silotune-silo-{who}=", f"silotune-silo-{who}-")

    def there(self, text, who):
        """What was printed here with the guide's names."""
        for theirs, ours in self.places(who):
            text = re.sub(rf"\b{re.escape(ours)}\b" if ours == who else re.escape(ours), theirs, text)
        return text

    def environment(self):
        """What a shell has in which the guides are followed; no folder for the cache is named in them."""
        own = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "HOME": str(self.ground), "COLUMNS": "120"}
        inherited = {name: value for name, value in os.environ.items() if name != "SILOTUNE_HOME"}
        return {**inherited, **own, "PYTHONPATH": PACKAGES, "OMP_NUM_THREADS": "1"}

    def install(self, python):
        for name, command in (("silotune", f'exec {python} -P -m silotune.cli "$@"'), ("sudo", 'exec "$@"')):
            (self.bin / name).write_text(f"#!/bin/sh\n{command}\n")
            (self.bin / name).chmod(0o755)

    def follow(self, page, title, who):
        """Run a section's commands; what the block of text after them shows is to be among what they print."""
        said = ""
        for kind, block in sections(page)[title]:
            if kind == "sh":
                said = "".join(self.run(line, who) for line in block.splitlines())
            elif kind == "text":
                shown = {normal(line) for line in block.splitlines()} - {""}
                printed = {normal(line) for line in self.there(said, who).splitlines()}
                assert shown <= printed, f"{page}, {title}: {shown - printed} is not in\n{said}"
            elif kind == "toml":
                (self.ground / "fed" / "lungs.toml").write_text(self.here(block, who))

    def run(self, line, who):
        if line in NOT_RUN:
            return ""
        command = self.here(line, who)
        for start, more in self.options.items():
            command += f" {more}" if command.startswith(start) else ""
        if "systemctl" in command:
            return self.systemctl(*shlex.split(command.removeprefix("sudo ")), who=who)
        if "useradd" in command:
            self.users.append(command.split()[-1])
        folder = self.ground / "fed" if who is None else self.ground / who
        deadline = time.monotonic() + helpers.PATIENCE
        while True:
            done = subprocess.run(
                ["bash", "-c", command], cwd=folder, env=self.environment(), capture_output=True, text=True, check=False,
                timeout=helpers.PATIENCE,
            )  # fmt: skip
            if done.returncode == 0:
                return done.stdout + done.stderr
            # Somebody who looks before all is there looks again.
            assert "consortium status" in command and time.monotonic() < deadline, (
                command + done.stdout + done.stderr + self.logs()
            )
            time.sleep(2)

    def systemctl(self, _, verb, *words, who):
        """What systemd would do, with the commands, the users and the folders that a unit names."""
        for name in words:
            if name.startswith("-"):
                continue
            if verb in ("enable", "start"):
                self.start(name, who)
            elif verb in ("disable", "stop"):
                self.stop(name)
        return "".join(self.logs(name) for name in words) if verb == "enable" else ""

    def start(self, name, who):
        lines = [line.partition("=") for line in (self.units / f"{name}.service").read_text().splitlines()]
        told = {key: value for key, _, value in lines}
        owner = user(told["User"])
        before = as_user(owner, network=told.get("PrivateNetwork") != "yes")
        bare = {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGES, "OMP_NUM_THREADS": "1"}
        named = dict(one.split("=", 1) for one in shlex.split(told.get("Environment", "")))
        if "ExecStartPre" in told:
            subprocess.run(shlex.split(told["ExecStartPre"].removeprefix("+")), env=bare, check=True)
        with self.log(name).open("a") as log:
            self.running[name] = subprocess.Popen(
                [*before, *shlex.split(told["ExecStart"])], cwd=told.get("WorkingDirectory", "/"), env=bare | named,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        if name.endswith("carrier"):
            helpers.until(lambda: "takes this node" in self.log(name).read_text(), self.running[name])
        elif who is None:  # whoever reads the guide takes longer to the next command than the server to its start
            self.run("silotune consortium status lungs", None)

    def stop(self, name):
        process = self.running.pop(name)
        process.terminate()
        process.wait(60)

    def log(self, name):
        return self.ground / f"{name}.log"

    def logs(self, name="*"):
        return "".join(path.read_text() for path in self.ground.glob(f"{name}.log"))

    def end(self):
        for name in list(self.running)[::-1]:
            self.stop(name)
        for name in self.users:
            subprocess.run(["userdel", name], check=False, capture_output=True)


def normal(line):
    """A line without what is another each time: numbers, keys, the order of words in a table's frame."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", line)
    line = re.sub(r"\b([0-9a-f]{4} ){7}[0-9a-f]{4}\b|\b[0-9a-f]{16,}\b", "#", line)
    line = re.sub(r"-?\d[\d.,:T+-]*", "#", re.sub(r"\b(north|harbour)\b", "st-mary", line))
    return " ".join(re.sub(r"[━┏┓┗┛┳┻╇┡┩└┘┴─┃│]+", " ", line).replace("# B", "# kB").split())


@pytest.fixture
def machine():
    if os.geteuid() != 0 or not all(map(shutil.which, ("useradd", "userdel", "setpriv", "unshare"))):
        pytest.skip("two users can be made by root only, with util-linux and useradd")
    ground = Path(tempfile.mkdtemp(dir="/tmp", prefix="guides"))  # pytest's own folder is closed to other users
    ground.chmod(0o755)
    made = Machine(ground)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(ground)


def furnish(machine, base):
    """What the guides take for granted: the members' text, the base model everywhere, and each member's file."""
    for who in ("coordinator", *MEMBERS):
        copied = shutil.copytree(base, machine.ground / who / "models" / "base")
        for path in copied.iterdir():
            path.chmod(0o644)
    for who, text in MEMBERS.items():
        shutil.copytree(Path(silotune.__file__).parent / "demo" / "silos" / text, machine.ground / who / "text")


@pytest.mark.timeout(3600)
def test_the_guides_lead_three_members_to_the_bits_of_inline(machine, tmp_path):
    base, ground = make_model(tmp_path / "base"), machine.ground
    furnish(machine, base)
    machine.install(python_of(user("nobody")))
    for page, titles, members in ORDER:
        for who in members or (None,):
            if page == "member" and titles[0] == "Install silotune":
                shutil.copy(ground / "fed" / f"{who}.invite", ground / who)  # over a way that only they can read
            for title in titles:
                machine.follow(page, title, who)
    # One that was expelled comes in again, into the folder that it has.
    machine.run("silotune consortium invite lungs harbour --out again.invite", None)
    shutil.copy(ground / "fed" / "again.invite", ground / "harbour" / "harbour.invite")
    machine.follow("member", "Join", "harbour")
    machine.follow("member", "Examine it", "harbour")
    run, silos = ground / "fed" / "first", tmp_path / "silos"
    for who in MEMBERS:
        shutil.copytree(ground / who / "text", silos / who)
    threads = len(os.sched_getaffinity(0))
    helpers.run("train", ground / "fed" / "lungs.toml", "--out", tmp_path / "inline", "--set", "federation.engine=inline",
                "--set", f'data.silos=["{silos}/*"]', "--set", f"federation.threads={threads}")  # fmt: skip
    assert helpers.adapter(tmp_path / "inline") == helpers.adapter(run)
    assert "Text apart from the network" in (run / "report.html").read_text(encoding="utf-8")
    assert (ground / "fed" / "lungs.tar.gz").stat().st_mode & 0o077 == 0
    assert (
        not (ground / "north" / "st-mary").exists() and not (ground / "north" / "north" / "worker" / "memory").exists()
    )
