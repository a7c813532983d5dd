"""From models on silos' held-out rows to the figures of a comparison: sums, gains and how sure they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from silotune.compare.baselines import Model
from silotune.compare.comparison import Cell, Everybody, Gain, GainInterval, MeanGain, Point, Scores, SiloPoint
from silotune.compare.measured import Measured
from silotune.compare.statistics import bootstrap, t_interval
from silotune.training.scores import answer_scores, label_scores


@dataclass(frozen=True)
class Column:
    """A model on the held-out rows of every silo."""

    model: Model
    silos: Mapping[str, Measured]
    labels: tuple[str, ...] = ()
    """Those that it chose from."""

    def loss(self, silo: str) -> float:
        """Mean over the tokens of a silo's held-out answers, in nats."""
        return _mean_loss([self.silos[silo]])

    @property
    def everybody(self) -> float:
        """Mean over the tokens of all silos' held-out answers, in nats."""
        return _mean_loss(list(self.silos.values()))

    def accuracy(self, silos: Sequence[str]) -> float | None:
        """Return the label accuracy over some silos' rows; None if they have no labels."""
        scores = task_scores([self.silos[silo] for silo in silos], self.labels)
        return scores.labels.accuracy if scores and scores.labels else None


@dataclass(frozen=True)
class Trial:
    """A seed's models, at one number of training rows."""

    federated: Column
    alone: Mapping[str, Column]
    """By silo."""
    pooled: Column | None = None

    def own(self, silo: str) -> float:
        """What a silo gains over alone on its own rows."""
        return self.alone[silo].loss(silo) - self.federated.loss(silo)

    def everybody(self, silo: str) -> float:
        """What a silo gains over alone on everybody's rows."""
        return self.alone[silo].everybody - self.federated.everybody

    def means(self) -> tuple[float, float]:
        """Mean gains over silos: on their own rows, on everybody's."""
        return _mean([self.own(silo) for silo in self.alone]), _mean([self.everybody(silo) for silo in self.alone])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_loss(measured: Sequence[Measured]) -> float:
    return float(sum(one.loss.sum() for one in measured) / sum(one.tokens.sum() for one in measured))


def task_scores(measured: Sequence[Measured], labels: Sequence[str]) -> Scores | None:
    """Task scores over rows of one or several silos; None where there are none."""
    chosen = [one.labels for one in measured if one.labels is not None]
    found = Scores(
        labels=label_scores(chosen, labels) if chosen else None,
        answers=answer_scores([answer for one in measured for answer in one.answers]),
    )
    return found if found != Scores() else None


def cells(column: Column) -> list[Cell]:
    """A model's row of the matrix, silo by silo."""
    return [
        Cell(model=column.model.name, silo=silo, seed=column.model.seed, **figures([column.silos[silo]], column.labels))
        for silo in sorted(column.silos)
    ]


def over_everybody(column: Column) -> Everybody:
    """A model on all held-out rows."""
    found = figures(list(column.silos.values()), column.labels)
    return Everybody(model=column.model.name, seed=column.model.seed, **found)


class Figures(TypedDict):
    """What a `Cell` and an `Everybody` say of rows."""

    rows: int
    tokens: int
    loss: float
    token_accuracy: float
    scores: Scores | None


def figures(measured: Sequence[Measured], labels: Sequence[str]) -> Figures:
    """What a `Cell` and an `Everybody` say of rows."""
    tokens = sum(int(one.tokens.sum()) for one in measured)
    correct = sum(int(one.correct.sum()) for one in measured)
    return {
        "rows": sum(len(one.loss) for one in measured),
        "tokens": tokens,
        "loss": _mean_loss(measured),
        "token_accuracy": correct / tokens,
        "scores": task_scores(measured, labels),
    }


# ------------------------------------------------------------------------------------------------- gains


def gains(trials: Sequence[Trial]) -> list[Gain]:
    """What each silo gains over alone; means over seeds."""
    return [
        Gain(
            silo=silo,
            own=_mean([trial.own(silo) for trial in trials]),
            everybody=_mean([trial.everybody(silo) for trial in trials]),
            own_accuracy=_accuracy_gain(trials, silo, [silo]),
            everybody_accuracy=_accuracy_gain(trials, silo, list(trials[0].federated.silos)),
        )
        for silo in trials[0].alone
    ]


def _accuracy_gain(trials: Sequence[Trial], silo: str, tested: Sequence[str]) -> float | None:
    pairs = [(trial.federated.accuracy(tested), trial.alone[silo].accuracy(tested)) for trial in trials]
    differences = [one - other for one, other in pairs if one is not None and other is not None]
    return _mean(differences) if differences else None


def mean_gain(each: Sequence[Gain]) -> MeanGain:
    """The mean over silos (over those that have the figure)."""

    def over(name: str) -> float | None:
        values = [value for gain in each if (value := getattr(gain, name)) is not None]
        return _mean(values) if values else None

    return MeanGain(
        own=_mean([gain.own for gain in each]),
        everybody=over("everybody"),
        own_accuracy=over("own_accuracy"),
        everybody_accuracy=over("everybody_accuracy"),
    )


def share_of_pooled_gain(base: Column, trials: Sequence[Trial]) -> float | None:
    """(base - federated) / (base - pooled) of everybody's loss; None where pooled gains nothing."""
    federated = _mean([trial.federated.everybody for trial in trials])
    pooled = _mean([trial.pooled.everybody for trial in trials if trial.pooled is not None])
    return (base.everybody - federated) / (base.everybody - pooled) if pooled < base.everybody else None


def intervals(trials: Sequence[Trial], seed: int) -> list[GainInterval]:
    """How sure each gain is, and the mean over silos."""
    silos, tested = list(trials[0].alone), list(trials[0].federated.silos)
    found = []
    for silo in silos:
        own, everybody = _differences(trials, [silo], [silo]), _differences(trials, [silo], tested)
        tokens = _tokens(trials[0], [silo]), _tokens(trials[0], tested)
        found.append(_interval(silo, "own", [trial.own(silo) for trial in trials], [own], [tokens[0]], seed))
        found.append(
            _interval(silo, "everybody", [trial.everybody(silo) for trial in trials], [everybody], [tokens[1]], seed)
        )
    own_each = [_differences(trials, [silo], [silo]) for silo in silos]
    own_tokens = [_tokens(trials[0], [silo]) for silo in silos]
    found.append(_interval(None, "own", [trial.means()[0] for trial in trials], own_each, own_tokens, seed))
    together = [_differences(trials, silos, tested)]
    means = [trial.means()[1] for trial in trials]
    found.append(_interval(None, "everybody", means, together, [_tokens(trials[0], tested)], seed))
    return found


def _differences(trials: Sequence[Trial], silos: Sequence[str], tested: Sequence[str]) -> NDArray[np.float64]:
    """(rows of the tested silos,): loss alone (mean over silos) less federated, summed over a row; mean over seeds."""

    def rows(column: Column) -> NDArray[np.float64]:
        return np.concatenate([column.silos[name].loss for name in tested])

    each = [np.mean([rows(trial.alone[silo]) for silo in silos], 0) - rows(trial.federated) for trial in trials]
    return np.asarray(np.mean(each, 0))


def _tokens(trial: Trial, tested: Sequence[str]) -> NDArray[np.int64]:
    return np.concatenate([trial.federated.silos[name].tokens for name in tested])


def _interval(
    silo: str | None,
    on: Literal["own", "everybody"],
    by_seed: Sequence[float],
    differences: Sequence[NDArray[np.float64]],
    tokens: Sequence[NDArray[np.int64]],
    seed: int,
) -> GainInterval:
    return GainInterval(
        silo=silo, on=on, gain=_mean(by_seed), t=t_interval(by_seed), bootstrap=bootstrap(differences, tokens, seed)
    )


def point(rows: int, trials: Sequence[Trial], held: Callable[[str], int]) -> Point:
    """A point of the curve: `held` says how many training rows a silo has in all."""
    means = [trial.means() for trial in trials]
    own, everybody = [mean[0] for mean in means], [mean[1] for mean in means]
    return Point(
        rows=rows,
        own=_mean(own),
        everybody=_mean(everybody),
        own_t=t_interval(own),
        everybody_t=t_interval(everybody),
        silos=[
            SiloPoint(
                silo=silo,
                rows=min(rows, held(silo)),
                own=_mean([trial.own(silo) for trial in trials]),
                everybody=_mean([trial.everybody(silo) for trial in trials]),
            )
            for silo in trials[0].alone
        ],
        fewer=sorted(silo for silo in trials[0].federated.silos if held(silo) < rows),
    )
