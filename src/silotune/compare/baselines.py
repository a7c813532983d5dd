"""The models that a run is held against: the base, each silo alone, all text pooled, and the federation again.

What is the same for all of them: the base, the adapter's shape and its start (drawn from the seed), a silo's rows, the
batch, the learning rate and its course over the whole training, and an optimizer that starts anew each round. Alone and
pooled are trained plainly, the whole adapter in every round, whatever the run's method: it is what a silo, or whoever
had all the text, could do without a federation.

alone       one silo on its own rows, for as many rounds as that silo took part in: so many steps
pooled      one model on all silos' rows, for as many optimizer steps as all silos together took in the federation: it
            sees as many rows as they all did, and its tokens are noted beside it
federated   the run's own adapter; with another seed or with fewer rows the same federation, run again in this process

Each model has a folder in RUN/compare that is named by all that its training depends on. A training that was cut
short goes on at its last round there, and one that is done is not done again.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from silotune import atomic
from silotune.algorithms.interface import ServerState
from silotune.compare.context import ComparisonContext
from silotune.data.seeds import derive
from silotune.data.silos.joined import Joined
from silotune.errors import DivergedError, FederationError, Interrupted
from silotune.federation import checkpoint, result
from silotune.federation.checkpoint import Saved
from silotune.federation.events import Event
from silotune.federation.local import MEMORY
from silotune.federation.metrics import TrainFigures, silo_line
from silotune.federation.run import RunFolder, identify
from silotune.federation.spent import Spent, spent_by, total
from silotune.model import lora
from silotune.model.adapter import AdapterState, initial_adapter
from silotune.model.base import place, published_name
from silotune.settings import FederationSettings, Recipe, TrainingSettings, WireSettings
from silotune.silo.worker import Worker

FORMAT = 2
"""Changes when the same training would come to another result, or is written down otherwise."""
POOLED = "pooled"


@dataclass(frozen=True)
class Model:
    """A model of a comparison."""

    name: str
    """`base`, `alone:NAME`, `pooled` or `federated`."""
    seed: int
    folder: Path
    """Where what is known of it is kept."""
    adapter: Path | None
    """The folder of its adapter; None: the base."""
    train_rows: int
    spent: Spent
    silos: Mapping[str, Spent]
    """What each silo spent on it."""


# ------------------------------------------------------------------------------------------- models that are there


def base(context: ComparisonContext) -> Model:
    """The base itself."""
    folder = _folder(context, "base", {"base": context.fingerprint, "numbers": _numbers(context)})
    return Model("base", context.recipe.seed, folder, None, 0, Spent(0, 0, 0, 0), {})


def federated(context: ComparisonContext) -> Model:
    """The run's own adapter."""
    weights = (context.run.adapter / "adapter_model.safetensors").read_bytes()
    depends = {"adapter": hashlib.blake2b(weights, digest_size=16).hexdigest(), "base": context.fingerprint,
               "numbers": _numbers(context)}  # fmt: skip
    folder = _folder(context, "federated", depends)
    silos = spent_by(context.run.metrics())
    rows = sum(len(context.corpus(silo).train) for silo in context.silos)
    return Model("federated", context.recipe.seed, folder, context.run.adapter, rows,
                 total(silos.values(), context.recipe.training.rounds), silos)  # fmt: skip


def _numbers(context: ComparisonContext) -> list[str]:
    model = context.recipe.model
    return [place(model.device, model.dtype).dtype, model.keep]


def put(context: ComparisonContext, model: Model) -> None:
    """Have a model's adapter lie in the resident base."""
    resident = context.resident
    adapter: AdapterState
    if model.adapter is not None:
        name = published_name(context.recipe.model.base)
        adapter = lora.load(model.adapter, resident.spec, context.recipe.lora, name, resident.norms)
    else:
        adapter = initial_adapter(resident.spec, derive(model.seed, "adapter"))
    lora.put(resident.model, adapter)


# ----------------------------------------------------------------------------------------- models that are trained


def alone(
    context: ComparisonContext, silo: str, seed: int, rounds: int, rows: int = 0, steps: int | None = None
) -> Model:
    """One silo on its own rows.

    Args:
        context: of the comparison.
        silo: its name.
        seed: of the training.
        rounds: as many as it took part in.
        rows: training rows that it holds at most; 0: all.
        steps: a round, in place of the recipe's own.

    Raises:
        FederationError: training does not come to an end, the loss is not finite for example.
    """
    training = _with_steps(context.recipe.training, steps).model_copy(update={"rounds": max(1, rounds)})
    return _plain(context, f"alone:{silo}", silo, _recipe(context, training, seed), [silo], rows)


def federated_again(context: ComparisonContext, seed: int, rows: int = 0, steps: int | None = None) -> Model:
    """The run's federation, with another seed or fewer rows.

    Raises:
        FederationError: too few updates can be used.
    """
    name, training = "federated", _with_steps(context.recipe.training, steps)
    recipe = context.recipe.model_copy(update={"training": training, "seed": seed})

    def train(work: RunFolder) -> AdapterState:
        from silotune.federation.inline import run_inline
        from silotune.federation.server import federate

        identify(work)
        run_context = replace(context.run_context, watch=_rounds_of(context, name, recipe))
        spec, states = result.adapter_spec(recipe), list[ServerState]()
        workers = [Worker(replace(silo, rows=rows, memory=work.path / MEMORY)) for silo in context.silos.values()]
        try:
            run_inline(
                lambda grid: states.append(federate(grid, recipe, work, run_context, spec, scored=False)), workers
            )
        except (FederationError, Interrupted) as error:
            raise type(error)(f"{name}: {error}") from error
        return states[0].adapter

    return _trained(context, name, recipe, list(context.silos), rows, train)


def pooled(context: ComparisonContext, seed: int, together: Spent) -> Model:
    """One model on all silos' rows.

    Args:
        context: of the comparison.
        seed: of the training.
        together: what all silos spent in the federation.

    Raises:
        FederationError: the loss is not finite.
    """
    rounds = context.recipe.training.rounds
    training = _with_steps(context.recipe.training, max(1, round(together.steps / rounds)))
    return _plain(context, POOLED, POOLED, _recipe(context, training, seed), sorted(context.silos))


def _recipe(context: ComparisonContext, training: TrainingSettings, seed: int) -> Recipe:
    """The recipe of a plain training: nothing of a federation is in it."""
    changes = {"training": training.model_copy(update={"proximal": 0.0}), "seed": seed, "wire": WireSettings(),
               "federation": FederationSettings(minimum=1, engine="inline")}  # fmt: skip
    return context.recipe.model_copy(update=changes)


def _with_steps(training: TrainingSettings, steps: int | None) -> TrainingSettings:
    return training if steps is None else training.model_copy(update={"steps": steps, "epochs": None})


def _rounds_of(context: ComparisonContext, name: str, recipe: Recipe) -> Callable[[Event], None]:
    """A watcher that passes on how far a training is, and nothing else."""

    def watch(event: Event) -> None:
        if event.kind == "round":
            fields = {"model": name, "round": event.fields["round"], "rounds": recipe.training.rounds}
            context.run_context.watch(Event("training", fields))

    return watch


def _plain(
    context: ComparisonContext, name: str, learner: str, recipe: Recipe, silos: list[str], rows: int = 0
) -> Model:
    """A model that whoever holds the rows of these silos can train; `learner` is its name in seeds and metrics."""

    def train(work: RunFolder) -> AdapterState:
        try:
            return _rounds(context, work, recipe, name, learner, silos, rows)
        except DivergedError as error:
            raise FederationError(f"{name}: {error}") from None

    return _trained(context, name, recipe, silos, rows, train)


def _rounds(
    context: ComparisonContext, work: RunFolder, recipe: Recipe, name: str, learner: str, silos: list[str], rows: int
) -> AdapterState:
    """Rounds of plain training on the rows of these silos, saved after each."""
    from silotune.training.local_run import TrainingTask
    from silotune.training.loop import train_alone

    work.path.mkdir(parents=True, exist_ok=True)
    saved = checkpoint.latest(work)
    checkpoint.rewind(work, saved)
    spec, training = context.resident.spec, recipe.training
    state = saved.state if saved else ServerState(0, initial_adapter(spec, derive(recipe.seed, "adapter")))
    moments = dict(state.slots) if training.moments == "keep" else None
    task = TrainingTask(
        learner, Joined(tuple(context.corpus(silo, rows).train for silo in silos)), state.adapter, spec.names,
        lambda _: context.require_going(), moments,
    )  # fmt: skip
    watch = _rounds_of(context, name, recipe)
    for round_, totals, adapter in train_alone(
        context.resident, context.forward_plan, task, training, recipe.seed, state.round
    ):
        state = ServerState(round_, adapter, dict(moments or {}))
        line = silo_line(round_, learner, None)
        line["train"] = cast(TrainFigures, asdict(totals))
        work.add_metrics(line)
        checkpoint.save(work, Saved(state, {}, checkpoint.metrics_bytes(work)))
        watch(Event("round", {"round": round_}))
    return state.adapter


def _trained(
    context: ComparisonContext,
    name: str,
    recipe: Recipe,
    silos: list[str],
    rows: int,
    train: Callable[[RunFolder], AdapterState],
) -> Model:
    """A model from its folder, trained if it is not there."""
    depends = {
        "recipe": recipe.model_dump(exclude={"name": True, "data": True, "evaluation": True, "report": True,
                                             "trackers": True, "model": {"base", "keep_mib"}, "federation": RUNTIME}),
        "base": context.fingerprint, "numbers": _numbers(context), "max_length": recipe.data.max_length,
        "silos": [[silo, context.digest(silo, "train", rows)] for silo in sorted(silos)],
    }  # fmt: skip
    work = RunFolder(_folder(context, name, depends))
    done = work.path / "trained.json"
    if not done.exists():
        result.write_adapter(work, recipe, train(work))
        count = sum(len(context.corpus(silo, rows).train) for silo in silos)
        told = {"model": name, "seed": recipe.seed, "rows": count,
                "silos": {silo: asdict(spent) for silo, spent in spent_by(work.metrics()).items()}}  # fmt: skip
        atomic.write_text(done, json.dumps(told, indent=2, ensure_ascii=False))
    for needless in (work.states, work.path / MEMORY):
        shutil.rmtree(needless, ignore_errors=True)
    told = json.loads(done.read_text(encoding="utf-8"))
    by_silo = {silo: Spent(**spent) for silo, spent in told["silos"].items()}
    return Model(name, recipe.seed, work.path, work.adapter, told["rows"],
                 total(by_silo.values(), recipe.training.rounds), by_silo)  # fmt: skip


RUNTIME = {"engine", "workers", "threads", "silos", "round_timeout", "join_timeout"}
"""Settings of the federation that change no figure."""


def _folder(context: ComparisonContext, name: str, depends: Mapping[str, object]) -> Path:
    """RUN/compare/NAME-DIGEST."""
    text = json.dumps({"format": FORMAT, "name": name, **depends}, sort_keys=True)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()
    return context.run.path / "compare" / f"{re.sub('[^A-Za-z0-9.-]+', '-', name)[:40]}-{digest}"
