"""A real SuperLink with TLS on loopback, its members, and what becomes of them with the test."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from tests.real import helpers


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def certificates(folder: Path) -> None:
    """ca.pem, and server.pem with server.key for 127.0.0.1, signed by it."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def name(common):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])

    def certificate(subject, issuer, key, signer, extensions):
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name(issuer), name(subject), key.public_key(), x509.random_serial_number(),
                                          now - timedelta(minutes=5), now + timedelta(days=1))  # fmt: skip
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    (folder / "ca.pem").write_bytes(
        certificate("test CA", "test CA", ca, ca, [(x509.BasicConstraints(True, None), True), (usage, True)])
    )
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    (folder / "server.pem").write_bytes(
        certificate("localhost", "test CA", server, ca, [(x509.BasicConstraints(False, None), True), (names, False)])
    )
    (folder / "server.key").write_bytes(
        server.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


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
