"""A SuperLink with SuperNodes as Flower itself starts them, with TLS on loopback; all end with the test."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from tests.real import helpers

from silotune.consortium.authority import ca_certificate, draw_key, pem_of, server_certificate


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def certificates(folder: Path) -> None:
    """ca.pem, and server.pem with server.key for 127.0.0.1, signed by it."""
    ca_key, key = draw_key(), draw_key()
    (folder / "ca.pem").write_bytes(ca := ca_certificate("test", ca_key))
    (folder / "server.pem").write_bytes(server_certificate("127.0.0.1", key, ca, pem_of(ca_key)))
    (folder / "server.key").write_bytes(pem_of(key))


class Deployment:
    """A SuperLink with TLS and SuperNodes on loopback, ended with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.processes = folder, free_port(), []
        folder.mkdir()
        certificates(folder)
        here = str(Path(sys.executable).parent)  # Flower starts its helpers by name
        self.env = {**os.environ, "FLWR_HOME": str(folder / "flwr"), "OMP_NUM_THREADS": "1",
                    "PATH": here + os.pathsep + os.environ["PATH"]}  # fmt: skip
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(
            '[superlink]\ndefault = "test"\n[superlink.test]\n'
            f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{folder}/ca.pem"\n'
        )

    def start(self, command: str, *arguments: object) -> None:
        with (self.folder / f"{command}-{len(self.processes)}.log").open("w") as log:
            self.processes.append(subprocess.Popen(
                [str(Path(sys.executable).with_name(command)), *map(str, arguments)], env=self.env, stdout=log, stderr=log,
                start_new_session=True,
            ))  # fmt: skip

    def superlink(self) -> None:
        self.start("flower-superlink", "--ssl-ca-certfile", self.folder / "ca.pem", "--ssl-certfile", self.folder / "server.pem",
                   "--ssl-keyfile", self.folder / "server.key", "--host", "127.0.0.1", "--port", self.port,
                   "--database", self.folder / "state.db")  # fmt: skip
        deadline = time.monotonic() + helpers.PATIENCE
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            assert time.monotonic() < deadline and self.processes[0].poll() is None, "the SuperLink did not come up"
            time.sleep(0.2)

    def supernode(self, config: str) -> None:
        self.start("flower-supernode", "--root-certificates", self.folder / "ca.pem", "--superlink", f"127.0.0.1:{self.port}",
                   "--host", "127.0.0.1", "--port", free_port(), "--node-config", config)  # fmt: skip

    def flwr(self, *arguments: object) -> str:
        command = [str(Path(sys.executable).with_name("flwr")), *map(str, arguments)]
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=helpers.PATIENCE, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout + done.stderr

    def logs(self) -> str:
        return "".join(f"\n--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        for process in self.processes:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            for child in helpers.gone(children, 5):
                child.kill()
