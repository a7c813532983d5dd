"""Was it worth it? A run's model beside the base, each silo alone and all text pooled, on the same held-out rows.

Two questions, two numbers, never mixed: is a silo better off with the federated model than alone on its own rows, and
is it on everybody's. Everybody's loss is that of a token: all held-out tokens of all silos count the same, as in the
run's own figures. The models and their budget are described in `federation.baselines`.

All silos' text must be on this machine, so this is for simulations; `deployed` is for where it is not.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from silotune.compare import baselines, comparison, gains
from silotune.compare.baselines import Model
from silotune.compare.comparison import SAME_BUDGET, TOKENS_BESIDE, Budget, Comparison, Point, Trained
from silotune.compare.context import ComparisonContext, open_context
from silotune.compare.gains import Column, Trial
from silotune.compare.measured import labels_of, measure
from silotune.compare.statistics import crossover
from silotune.data.read.files import printable
from silotune.errors import InputError, Interrupted
from silotune.federation import local
from silotune.federation import run as run_folder
from silotune.federation.events import Event, Watcher
from silotune.federation.quiet import quiet
from silotune.federation.run import RunFolder
from silotune.federation.spent import Spent
from silotune.training.scores import require_packages

if TYPE_CHECKING:  # it loads torch
    from silotune.training.labels import Candidates


@dataclass(frozen=True)
class Wanted:
    """What to compare."""

    seeds: int = 1
    """Seeds of training: that of the run, and those after it."""
    rows: tuple[int, ...] = ()
    """Row counts of the curve."""
    silos: tuple[str, ...] = ()
    """Silos to train alone; empty: all. The tests are always everybody's."""
    answers: int = 0
    """Held-out questions per silo to answer in text."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: naming the option.
        """
        if self.seeds < 1:
            raise InputError(f"--seeds {self.seeds}: give a number of at least 1.")
        if self.answers < 0:
            raise InputError(f"--answers {self.answers}: give a number of at least 0.")
        if any(count < 1 for count in self.rows) or len(set(self.rows)) < len(self.rows):
            raise InputError("--rows: give different numbers of at least 1, with commas between: 20,50,100.")


def compare(run: RunFolder, wanted: Wanted, watch: Watcher = lambda _: None) -> Comparison:
    """Compare a finished run's model; what was computed before is not computed again.

    Args:
        run: the run's folder; RUN/compare and RUN/compare.json are written.
        wanted: what to compare.
        watch: told of `model` (one is begun: its number of how many), `training` (a round of it is done), `scoring`.

    Raises:
        InputError: text, silos or row counts cannot be used.
        RunError: the silos' text is not on this machine.
        FederationError: a training does not come to its end.
        Interrupted: somebody asked to stop; what is done is kept.
    """
    if wanted.answers:
        require_packages()
    with run_folder.held(run):
        context = open_context(run)
        alone = _silos(context, wanted)
        _require_rows(context, wanted.rows)
        with (
            run_folder.scratch(run) as scratch,
            quiet(run.log_file) as aloud,
            local.local_run_context(len(context.silos), aloud(watch), scratch) as run_context,
        ):
            silos = {name: replace(silo, scratch=scratch) for name, silo in context.silos.items()}
            context = replace(context, silos=silos, run_context=run_context)
            try:
                found = _compared(context, wanted, alone)
            except Interrupted as error:
                raise Interrupted(f"{error} Go on with the same command.") from error
        comparison.write(run, found)
    return found


def _silos(context: ComparisonContext, wanted: Wanted) -> list[str]:
    for name in wanted.silos:
        if name not in context.silos:
            known = ", ".join(map(printable, sorted(context.silos)))
            raise InputError(f"--silos: the run has no silo {printable(name)!r}; it has {known}.")
    return sorted(set(wanted.silos) or context.silos)


def _require_rows(context: ComparisonContext, counts: Sequence[int]) -> None:
    held = {name: context.corpus(name).train.rows for name in sorted(context.silos)}
    for count in counts:
        if count > max(held.values()):
            listed = ", ".join(f"{printable(name)} {rows}" for name, rows in held.items())
            raise InputError(f"--rows {count}: no silo holds so many training rows ({listed}).")


# ----------------------------------------------------------------------------------------------- the models


@dataclass
class _Work:
    """What goes on."""

    context: ComparisonContext
    wanted: Wanted
    alone: Sequence[str]
    offered: "Candidates | None"
    models: int
    """To be looked at, over all."""
    begun: int = 0


def _compared(context: ComparisonContext, wanted: Wanted, alone: Sequence[str]) -> Comparison:
    corpora = [context.corpus(silo) for silo in sorted(context.silos)]
    offered, remarks = labels_of(context.tokenizer, [split for one in corpora for split in (one.train, one.test)])
    each = 2 + len(alone)
    models = 1 + wanted.seeds * (each + len(wanted.rows) * (each - 1))
    work = _Work(context, wanted, alone, offered, models)
    seeds = [(context.recipe.seed + number) % 2**63 for number in range(wanted.seeds)]
    base = _column(work, "base", context.recipe.seed, lambda: baselines.base(context))
    trials = [_trial(work, seed) for seed in seeds]
    every = gains.gains(trials)
    columns = [base, *(column for trial in trials for column in _columns(trial))]
    curve = [_point(work, count, seeds) for count in sorted(wanted.rows)]
    return Comparison(
        budget=_budget(context, [column.model for column in columns]),
        matrix=[cell for column in columns for cell in gains.cells(column)],
        everybody=[gains.over_everybody(column) for column in columns],
        gains=every,
        mean_gain=gains.mean_gain(every),
        share_of_pooled_gain=gains.share_of_pooled_gain(base, trials),
        seeds=seeds,
        intervals=gains.intervals(trials, context.recipe.seed),
        curve=curve or None,
        crossover=crossover([(point.rows, point.own) for point in curve]),
        remarks=[*remarks, *_idle(trials[0]), *_remarks(work, curve)],
    )


def _trial(work: _Work, seed: int, rows: int = 0, steps: int | None = None) -> Trial:
    """The models of a seed, at a number of training rows (0: all that there are)."""
    context = work.context

    def federation() -> Model:
        all_rows = not rows or all(context.corpus(silo).train.rows <= rows for silo in context.silos)
        if all_rows and steps is None and seed == context.recipe.seed:
            return baselines.federated(context)
        return baselines.federated_again(context, seed, rows, steps)

    federated = _column(work, "federated", seed, federation, rows)
    nothing = Spent(0, 0, 0, 0)
    alone = {}
    for silo in work.alone:
        rounds = federated.model.silos.get(silo, nothing).rounds
        make = functools.partial(baselines.alone, context, silo, seed, rounds, rows, steps)
        alone[silo] = _column(work, f"alone:{silo}", seed, make, rows)
    if rows:
        return Trial(federated, alone)
    together = federated.model.spent
    pooled = _column(work, baselines.POOLED, seed, lambda: baselines.pooled(context, seed, together))
    return Trial(federated, alone, pooled)


def _column(work: _Work, name: str, seed: int, make: Callable[[], Model], rows: int = 0) -> Column:
    """Train a model or find it, and score it on every silo's rows; at all rows its tasks too."""
    context, tell = work.context, work.context.run_context.watch
    work.begun += 1
    tell(Event("model", {"model": name, "seed": seed, "rows": rows or None, "number": work.begun, "of": work.models}))
    model = make()
    offered = None if rows else work.offered
    measured = {}
    for silo in sorted(context.silos):
        tell(Event("scoring", {"model": name, "silo": silo}))
        asked = not rows and name in ("base", baselines.POOLED, "federated", f"alone:{silo}")
        measured[silo] = measure(context, model, silo, offered, work.wanted.answers if asked else 0)
    return Column(model, measured, offered.labels if offered else ())


def _columns(trial: Trial) -> list[Column]:
    return [*trial.alone.values(), *([trial.pooled] if trial.pooled else []), trial.federated]


def _point(work: _Work, rows: int, seeds: Sequence[int]) -> Point:
    """A point of the curve: the same number of steps per round, whatever the rows."""
    context, steps = work.context, None
    if context.recipe.training.epochs is not None:
        steps = _mean_steps(baselines.federated(context).silos)
    trials = [_trial(work, seed, rows, steps) for seed in seeds]
    return gains.point(rows, trials, lambda silo: context.corpus(silo).train.rows)


def _mean_steps(silos: Mapping[str, Spent]) -> int:
    """Optimizer steps of a silo in a round of the run, on average."""
    return max(1, round(sum(one.steps for one in silos.values()) / sum(one.rounds for one in silos.values())))


# ---------------------------------------------------------------------------------------------- in words


def _budget(context: ComparisonContext, models: Sequence[Model]) -> Budget:
    training = context.recipe.training
    text = (
        f"{SAME_BUDGET} Pooled takes as many optimizer steps as all silos together took (to a whole number a round), "
        f"so it sees as many rows as they all did. {TOKENS_BESIDE}"
    )
    trained = [Trained(model=one.name, seed=one.seed, train_rows=one.train_rows, **asdict(one.spent)) for one in models]
    return Budget(text=text, rounds=training.rounds, batch=training.batch * training.accumulation, models=trained)


def _idle(trial: Trial) -> list[str]:
    """Return a remark on silos whose budget differs from that of the run."""
    names = ", ".join(printable(silo) for silo in trial.alone if silo not in trial.federated.model.silos)
    return [f"No update of these silos counted in the run; alone each trains for one round: {names}."] if names else []


def _remarks(work: _Work, curve: Sequence[Point]) -> list[str]:
    lines = []
    if work.wanted.seeds > 1:
        lines.append(
            f"Seeds are of the training (start, order of rows, dropout, cohorts): {work.wanted.seeds} of them on the "
            "same split of rows."
        )
    if work.wanted.answers:
        lines.append("Answers in text: each silo alone answers its own questions only, the other models everybody's.")
    for point in curve:
        if point.fewer:
            names = ", ".join(map(printable, point.fewer))
            lines.append(f"At {point.rows} rows these silos hold fewer, all that they have: {names}.")
    if curve and work.context.recipe.training.epochs is not None:
        lines.append("On the curve a round has the same number of steps whatever the rows: the mean of the run's.")
    return lines
