"""Figures of a run for TensorBoard, MLflow and Weights & Biases, through their own libraries.

A tracker is told a round when it is saved, from the same lines as the report. What a run that is gone on with has told
already stands in `trackers.json`. A tracker that fails is left, and the run goes on.
"""

import hashlib
import importlib.util
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from silotune import atomic
from silotune.data.read.files import printable
from silotune.errors import RecipeError, RunError
from silotune.federation import checkpoint
from silotune.federation.events import Event, Watcher
from silotune.federation.metrics import Line
from silotune.federation.run import RunFolder
from silotune.recipe import dump_recipe, without_folders
from silotune.settings import Recipe

if TYPE_CHECKING:
    pass

T = TypeVar("T")


class Tracker(Protocol):
    """One open tracker."""

    identity: str | None
    """By which it finds the run again."""

    def write(self, round_: int, figures: Mapping[str, float]) -> None:
        """Take a round's figures in."""

    def close(self, complete: bool) -> None:
        """End; `complete` if every round was told."""


def wanted(recipe: Recipe) -> list[str]:
    """The trackers that a recipe switches on."""
    return [name for name in OPENERS if getattr(recipe.trackers, name)]


def require(recipe: Recipe) -> None:
    """Refuse a recipe that wants a tracker whose package is not installed.

    Raises:
        RecipeError: naming it and the command that installs it.
    """
    for name in wanted(recipe):
        if importlib.util.find_spec(name) is None:
            raise RecipeError(
                f'trackers.{name}: the package {name} is not installed: pip install "silotune[{name}]", or '
                f"--set trackers.{name}=false"
            )


@contextmanager
def tracked(recipe: Recipe, run: RunFolder, watch: Watcher) -> Iterator[Watcher]:
    """A watcher that also tells the recipe's trackers of every saved round."""
    book = _Book(run, recipe, watch)
    try:
        book.catch_up(checkpoint.last_round(run))

        def told(event: Event) -> None:
            watch(event)
            if event.kind == "round":
                book.catch_up(event.fields["round"])

        yield told if book.open else watch
    finally:
        book.close()


def figures_of(lines: Sequence[Line]) -> dict[str, float]:
    """The figures of one round's lines of metrics.jsonl, by name: `held_out_loss/all`, `held_out_loss/SILO`, ..."""
    found: dict[str, float | None] = {}
    for line in lines:
        who = "all" if line["silo"] is None else f"silo/{safe(line['silo'])}"
        evaluation = line["evaluation"]
        loss: float | None
        seconds: float | None
        if line["silo"] is None:
            loss, seconds = line["train_loss"], line["seconds"]
        else:
            train = line["train"]
            loss, seconds = (train["loss"], train["seconds"]) if train else (None, None)
        found |= {
            f"held_out_loss/{who}": evaluation["loss"] if evaluation else None,
            f"token_accuracy/{who}": evaluation["token_accuracy"] if evaluation else None,
            f"train_loss/{who}": loss,
            f"bytes_up/{who}": line["bytes_up"],
            f"bytes_down/{who}": line["bytes_down"],
            f"seconds/{who}": seconds,
        }
        if line["silo"] is None:
            found |= {"e_agg": line["e_agg"], "silos": line["silos"], "silos_left_out": len(line["left_out"])}
    return {name: float(value) for name, value in found.items() if value is not None}


def safe(name: str) -> str:
    """A silo's name of characters that every tracker takes; where some were replaced, a digest tells names apart."""
    clean = re.sub(r"[^\w .-]", "_", name).strip(". ")
    return clean if clean == name else f"{clean}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


# ------------------------------------------------------------------------------------------------- bookkeeping


@dataclass(frozen=True)
class Before:
    """What a tracker was told when the run was worked on before."""

    told: int = -1
    """The last round; -1 before the base's."""
    identity: str | None = None


def _told_before(file: Path) -> dict[str, Before]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {name: Before(int(known["told"]), known["identity"]) for name, known in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{file}: cannot be read. Remove it to have the trackers told everything again.") from None


@dataclass
class _Open:
    tracker: Tracker
    told: int


class _Book:
    """The open trackers of a run and what each was told."""

    def __init__(self, run: RunFolder, recipe: Recipe, watch: Watcher) -> None:
        self._run, self._recipe, self._watch = run, recipe, watch
        self._file = run.path / "trackers.json"
        before = _told_before(self._file)
        self.open: dict[str, _Open] = {}
        for name in wanted(recipe):
            known = before.get(name, Before())
            opened = self._try(name, partial(OPENERS[name], run, recipe, known))
            if opened is not None:
                self.open[name] = _Open(opened, known.told)
        self._save()

    def catch_up(self, round_: int | None) -> None:
        """Tell every tracker the rounds up to one that it was not told yet."""
        if round_ is None or all(each.told >= round_ for each in self.open.values()):
            return
        by_round: dict[int, list[Line]] = {}
        for line in self._run.metrics():
            by_round.setdefault(line["round"], []).append(line)
        for name, each in list(self.open.items()):
            for number in range(each.told + 1, round_ + 1):
                self._try(name, partial(each.tracker.write, number, figures_of(by_round.get(number, []))))
                each.told = number
        self._save()

    def close(self) -> None:
        """End all of them."""
        for name, each in list(self.open.items()):
            self._try(name, partial(each.tracker.close, each.told >= self._recipe.training.rounds))

    def _save(self) -> None:
        if self.open:
            told = {name: {"told": each.told, "identity": each.tracker.identity} for name, each in self.open.items()}
            atomic.write_text(self._file, json.dumps(told, indent=2))

    def _try(self, name: str, do: Callable[[], T]) -> T | None:
        """Do something with a tracker; one that fails is let go of, and whoever watches is told."""
        try:
            return do()
        except Exception as error:  # whatever a tracker's library may raise is no reason to lose a run
            self.open.pop(name, None)
            reason = printable(f"{type(error).__name__}: {error}")[:200]
            self._watch(Event("tracker_failed", {"tracker": name, "reason": reason}))
            return None


# ---------------------------------------------------------------------------------------------------- trackers


class TensorBoard:
    """Event files in the run's folder."""

    identity: str | None = None

    def __init__(self, run: RunFolder, recipe: Recipe, before: Before) -> None:
        """Open them; rounds after the last that was told are taken back, should there be any."""
        from torch.utils.tensorboard import SummaryWriter

        purge = {"purge_step": before.told + 1} if before.told >= 0 else {}
        self._writer = SummaryWriter(str(run.path / "tensorboard"), **purge)
        if before.told < 0:
            text = dump_recipe(without_folders(recipe))
            self._writer.add_text("recipe", "".join(f"    {line}\n" for line in text.splitlines()))

    def write(self, round_: int, figures: Mapping[str, float]) -> None:
        """A scalar each, on the disk at once."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, round_)
        self._writer.flush()

    def close(self, complete: bool) -> None:  # noqa: ARG002 - TensorBoard knows no end of a run
        """Close the file."""
        self._writer.close()


class MLflow:
    """A run in an experiment of the recipe's name."""

    def __init__(self, run: RunFolder, recipe: Recipe, before: Before) -> None:
        """Open it, or the one that was begun before."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # no call that nobody asked for
        from mlflow import MlflowClient

        uri = recipe.trackers.mlflow_uri or f"sqlite:///{run.path / 'mlflow.db'}"
        self._client: MlflowClient = MlflowClient(tracking_uri=uri)
        if before.identity is None:
            made = self._client.create_run(self._experiment(recipe, run), run_name=run.path.name)
            self.identity: str | None = made.info.run_id
            for key, value in _flat(without_folders(recipe).model_dump()).items():
                self._client.log_param(self.identity, key, str(value)[:500])
        else:
            self.identity = before.identity
            self._client.update_run(before.identity, status="RUNNING")

    def _experiment(self, recipe: Recipe, run: RunFolder) -> str:
        found = self._client.get_experiment_by_name(recipe.name)
        if found is not None:
            return str(found.experiment_id)
        # Artifacts are not written; left to itself, MLflow would name a folder in the working directory for them.
        place = None if recipe.trackers.mlflow_uri else (run.path / "mlflow").as_uri()
        return str(self._client.create_experiment(recipe.name, artifact_location=place))

    def write(self, round_: int, figures: Mapping[str, float]) -> None:
        """A batch of metrics; MLflow takes a thousand at a time."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, round_) for name, value in figures.items()]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(self.identity, metrics=metrics[first : first + 1000])

    def close(self, complete: bool) -> None:
        """Say how it ended."""
        self._client.set_terminated(self.identity, status="FINISHED" if complete else "KILLED")


class WandB:
    """A run of Weights & Biases in the run's folder; nothing is sent unless the recipe says `online`."""

    def __init__(self, run: RunFolder, recipe: Recipe, before: Before) -> None:
        """Open it; one that is gone on with has the same id, so that `wandb sync --append` joins the parts."""
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # no call that nobody asked for
        import wandb

        self.identity: str | None = before.identity or hashlib.sha256(os.urandom(16)).hexdigest()[:12]
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
                               x_disable_stats=True, x_disable_machine_info=True, host="silotune")  # fmt: skip
        self._run: wandb.Run = wandb.init(
            project=recipe.name, name=run.path.name, id=self.identity, dir=str(run.path), settings=quiet,
            mode=recipe.trackers.wandb_mode, resume="allow" if recipe.trackers.wandb_mode == "online" else None,
            config=without_folders(recipe).model_dump(),
        )  # fmt: skip

    def write(self, round_: int, figures: Mapping[str, float]) -> None:
        """One step of its history."""
        self._run.log({**figures, "round": round_}, step=round_, commit=True)

    def close(self, complete: bool) -> None:
        """End it."""
        self._run.finish(exit_code=0 if complete else 1)


OPENERS: Mapping[str, Callable[[RunFolder, Recipe, Before], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Settings by `section.key`."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
