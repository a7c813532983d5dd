"""A real consortium: its server with TLS on loopback, its members' silos, all started by silotune's own commands."""

import signal
import subprocess
from pathlib import Path

import psutil
from tests.real import helpers
from tests.real.superlink import free_port

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class RealConsortium:
    """A consortium whose processes end with the test."""

    def __init__(self, folder: Path, listen: str = "127.0.0.1") -> None:
        self.folder, self.port = folder, free_port()
        self.started: dict[str, subprocess.Popen[str]] = {}
        helpers.run("consortium", "init", folder, "--host", "127.0.0.1", "--listen", listen, "--port", self.port,
                    "--superlink-port", free_port())  # fmt: skip

    def start(self, name: str, *arguments: object, **options: object) -> "subprocess.Popen[str]":
        """Start a command that goes on; what it says is in a file beside the folder."""
        log = self.log(name).open("a")
        self.started[name] = helpers.start(*arguments, stdout=log, stderr=log, **options)
        return self.started[name]

    def log(self, name: str) -> Path:
        return self.folder.parent / f"{name}.log"

    def up(self) -> "subprocess.Popen[str]":
        """Start the server, and wait until it answers."""
        process = self.start("server", "consortium", "up", self.folder)
        helpers.until(lambda: not _code("consortium", "status", self.folder), process)
        return process

    def invite(self, name: str, *options: object) -> Path:
        place = self.folder.parent / f"{name}.invite"
        helpers.run("consortium", "invite", self.folder, name, "--out", place, *options)
        return place

    def join(
        self, name: str, data: Path, base: Path, policy: str = "min_rows = 1\nmin_silos = 1", **options: object
    ) -> Path:
        """Invite a member, and have it join; its folder."""
        house = self.folder.parent / f"house-{name}"
        helpers.run("silo", "join", self.invite(name), "--data", data, "--base", base, "--folder", house, **options)
        settings, rules = house / "silo.toml", house / "policy.toml"
        settings.write_text("threads = 1\n" + settings.read_text())
        keys = [line.partition("=")[0].strip() for line in policy.splitlines()]
        kept = [line for line in rules.read_text().splitlines() if line.partition("=")[0].strip() not in keys]
        rules.write_text("\n".join([*kept, policy]) + "\n")
        return house

    def silo(self, house: Path, **options: object) -> "subprocess.Popen[str]":
        """Start a member's silo, and wait for its socket."""
        process = self.start(house.name, "silo", "up", house, env=ONE_THREAD, **options)
        helpers.until((house / "meet" / "worker").exists, process)
        return process

    def train(self, recipe: Path, out: Path, *options: object, code: int = 0) -> str:
        """Run a recipe with the members, to its end."""
        return helpers.run("train", recipe, *self.deployed, "--out", out, *options, code=code)

    @property
    def deployed(self) -> tuple[object, ...]:
        return "--engine", "deployment", "--consortium", self.folder

    def logs(self) -> str:
        """The end of what everybody said."""
        return "".join(f"\n--- {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.parent.glob("*.log"))

    def end(self, name: str | None = None) -> None:
        """End a process that was started here, or all of them."""
        for each in [name] if name is not None else list(self.started)[::-1]:
            process = self.started.pop(each)
            family = helpers.family(process) if process.poll() is None else []
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            helpers.ended(process, 60)
            for left in helpers.gone(family, 30):
                left.kill()


def parts_of(process: "subprocess.Popen[str]", part: str) -> list[psutil.Process]:
    """The processes below one that are a part of a silo (`silo worker`, `silo carrier`) or of a server (`gateway`,
    `flower_superlink`)."""
    found = []
    for child in helpers.family(process):
        try:
            if f" {part}" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has just ended
            continue
    return found


def part_of(process: "subprocess.Popen[str]", part: str) -> psutil.Process:
    found = parts_of(process, part)
    assert found, f"there is no {part}"
    return found[0]


def has_part(process: "subprocess.Popen[str]", part: str) -> bool:
    return bool(parts_of(process, part))


def _code(*arguments: object) -> int:
    process = helpers.start(*arguments)
    process.communicate(timeout=helpers.PATIENCE)
    return process.returncode
