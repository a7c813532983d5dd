"""A run's folder: who may write it, what lies where, and what it was run with."""

import fcntl
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from silotune import atomic
from silotune.errors import RunError
from silotune.federation.metrics import Line
from silotune.privacy.ledger import LedgerLine, append_line, read_lines
from silotune.recipe import check_recipe, difference, dump_recipe, load_recipe
from silotune.settings import Recipe

UNFINISHED = ".unfinished"
"""Below a run's folder while it is being made."""
LOCK = ".lock"
PROBE = 0.2
"""Seconds to wait for a run folder: `worked_on` of another process may hold it for an instant."""
PACKAGES = ("silotune", "flwr", "ray", "torch", "transformers", "peft", "numpy", "safetensors", "tokenizers")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """Every setting of the run."""
        return self.path / "recipe.toml"

    @property
    def environment_file(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def states(self) -> Path:
        """A folder a round, the last few."""
        return self.path / "state"

    @property
    def metrics_file(self) -> Path:
        """One line per silo per round, and one line per round."""
        return self.path / "metrics.jsonl"

    @property
    def ledger_file(self) -> Path:
        """A line a message."""
        return self.path / "ledger.jsonl"

    @property
    def adapter(self) -> Path:
        """The result, as PEFT reads it."""
        return self.path / "adapter"

    @property
    def report_file(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def log_file(self) -> Path:
        """What Flower, Ray and the libraries below say."""
        return self.path / "log.txt"

    @property
    def scratch(self) -> Path:
        """Progress of the silos' work, on one machine, while the run is being worked on."""
        return self.path / ".scratch"

    def recipe(self) -> Recipe:
        """The recipe that the run was made with.

        Raises:
            RunError: this is no run folder.
        """
        if not (self.recipe_file.is_file() and self.environment_file.is_file()):
            raise RunError(f"{self.path}: not a run folder (it does not hold recipe.toml and environment.json).")
        return load_recipe(self.recipe_file)

    def metrics(self) -> list[Line]:
        """All lines of metrics.jsonl."""
        return list(read_lines(self.metrics_file))

    def ledger(self) -> Iterator[LedgerLine]:
        """All lines of ledger.jsonl, in order."""
        return read_lines(self.ledger_file)

    def environment(self) -> dict[str, object]:
        """What environment.json says.

        Raises:
            RunError: it cannot be read.
        """
        try:
            environment = json.loads(self.environment_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{self.environment_file}: cannot be read ({type(error).__name__}). Put it back.") from None
        if not isinstance(environment, dict):
            raise RunError(f"{self.environment_file}: not what a run writes. Put it back.")
        return environment

    def identity(self) -> str:
        """What tells this run from every other, hexadecimal: drawn when it was made.

        Raises:
            RunError: it was made by a release that drew none.
        """
        drawn = self.environment().get("run")
        if not isinstance(drawn, str):
            raise RunError(f"{self.environment_file}: names no `run`; another release made it. Start a new run.")
        return drawn

    def add_metrics(self, line: Line) -> None:
        """Append a line to metrics.jsonl."""
        append_line(self.metrics_file, json.dumps(line, ensure_ascii=False))

    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.adapter / "adapter_model.safetensors").is_file()


def default_folder(recipe: Recipe) -> Path:
    """Where a run goes that nobody named: runs/NAME-DATE-TIME below the working directory."""
    return Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"


def create(recipe: Recipe, path: Path) -> RunFolder:
    """Make a new run folder with the recipe and the environment in it.

    Raises:
        RunError: something is there already.
    """
    run = RunFolder(path.resolve())
    if not _free(run):
        raise RunError(f"{path}: exists already. Choose another --out, or go on with --resume {path}.")
    here = run.path.exists()
    try:
        unfinished = run.path / UNFINISHED
        unfinished.mkdir(parents=True, exist_ok=True)
        environment = json.dumps(describe_environment(recipe), indent=2) + "\n"
        atomic.write_text(unfinished / run.environment_file.name, environment)
        atomic.write_text(unfinished / run.recipe_file.name, dump_recipe(recipe))
        for file in (run.environment_file, run.recipe_file):
            (unfinished / file.name).replace(file)
        shutil.rmtree(unfinished)
        atomic.sync(run.path)
    except OSError as error:
        if not here:
            shutil.rmtree(run.path, ignore_errors=True)
        raise RunError(f"{path}: cannot be written ({error.strerror}).") from None
    return run


def identify(run: RunFolder) -> None:
    """Draw the identity of a folder in which a federation is run that is no run of its own, once."""
    run.path.mkdir(parents=True, exist_ok=True)
    if not run.environment_file.exists():
        atomic.write_text(run.environment_file, json.dumps({"run": _drawn()}) + "\n")


def _drawn() -> str:
    return secrets.token_hex(8)


def _free(run: RunFolder) -> bool:
    """Whether a run may be made here: nothing is here, or what a `create` that was cut short has left.

    The recipe comes last: with it the folder is a run.
    """
    if not run.path.exists():
        return True
    if not run.path.is_dir():
        return False
    names = {entry.name for entry in run.path.iterdir()}
    return not names or (UNFINISHED in names and names <= {UNFINISHED, run.environment_file.name})


def reopen(path: Path, recipe: Recipe | None) -> RunFolder:
    """Open a run folder to go on with.

    Args:
        path: of the run.
        recipe: what the user asks for now, or None to take the run's own.

    Raises:
        RunError: no run is there, or it is one of another recipe; the differences are named.
    """
    run = RunFolder(path.resolve())
    before = run.recipe()
    if recipe is not None:
        changes = difference(before, check_recipe(recipe.model_dump(exclude_none=True), "recipe"))
        if changes:
            raise RunError(f"{path}: was run with another recipe: {'; '.join(changes)}. Start a new run instead.")
    shutil.rmtree(run.path / UNFINISHED, ignore_errors=True)
    return run


def describe_environment(recipe: Recipe) -> dict[str, object]:
    """The run's identity, versions and machine, without names of people or hosts."""
    return {
        "run": _drawn(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "engine": recipe.federation.engine,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def scratch(run: RunFolder) -> Iterator[Path]:
    """An empty folder in the run's own for as long as it is being worked on."""
    path = run.scratch
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def worked_on(run: RunFolder) -> bool:
    """Whether a process holds the run folder now. Changes nothing in it."""
    try:
        descriptor = os.open(run.path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def held(run: RunFolder) -> Iterator[None]:
    """Hold a run folder, so that two processes never write one run.

    Raises:
        RunError: another process holds it.
    """
    lock = FileLock(run.path / LOCK)
    try:
        lock.acquire(timeout=PROBE)
    except Timeout:
        raise RunError(f"{run.path}: another process is working on this run. Wait for it or stop it first.") from None
    try:
        yield
    finally:
        lock.release()
