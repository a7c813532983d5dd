"""What the page tells of a comparison: means over seeds by model and silo, who is better off, and who is not."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from silotune.compare.comparison import Cell, Comparison, Everybody
from silotune.compare.statistics import Interval

ALONE = "alone:"
"""What the names of models that one silo trained begin with."""
OWN = "alone"
"""Stands for all of these together, where none was tested on another silo's rows."""


@dataclass(frozen=True)
class Figure:
    """A model on some rows, the mean over seeds."""

    loss: float
    """Nats per token."""
    token_accuracy: float


@dataclass(frozen=True)
class Side:
    """The answer to one of the two questions: on own rows, or on everybody's."""

    better: int
    of: int
    mean: float
    """Nats per token, over silos."""
    interval: Interval | None
    """95 % interval of the mean."""
    worse: Sequence[tuple[str, float]]
    """Silos that are not better off, the worst first."""


@dataclass(frozen=True)
class Matrix:
    """Figures by model and by silo; None is everybody's rows."""

    models: Sequence[str]
    silos: Sequence[str]
    figures: Mapping[tuple[str, str | None], Figure]

    def figure(self, model: str, silo: str | None) -> Figure | None:
        """A cell; None if this model was not tested on these rows."""
        return self.figures.get((model, silo))

    def lowest(self, silo: str | None) -> float | None:
        """The lowest loss of any model on some rows."""
        return min((each.loss for (_, rows), each in self.figures.items() if rows == silo), default=None)


def matrix(found: Comparison) -> Matrix:
    """Means over seeds; models in the order base, federated, pooled, what else there is, each silo alone.

    Where each silo computed its own row only, one model stands for all that silos trained alone: `OWN`.
    """
    own_only = not any(row.model.startswith(ALONE) for row in found.everybody)
    rows: dict[tuple[str, str | None], list[Cell | Everybody]] = defaultdict(list)
    for cell in found.matrix:
        rows[OWN if own_only and cell.model.startswith(ALONE) else cell.model, cell.silo].append(cell)
    for row in found.everybody:
        rows[row.model, None].append(row)
    order = {"base": 0, "federated": 1, "pooled": 2}
    names = dict.fromkeys(model for model, _ in rows)
    models = sorted(names, key=lambda name: order.get(name, 4 if name.startswith(ALONE) else 3))
    silos = list(dict.fromkeys(cell.silo for cell in found.matrix))
    means = {key: _mean(each) for key, each in rows.items()}
    return Matrix(models, silos, means)


def _mean(seeds: Sequence[Cell | Everybody]) -> Figure:
    return Figure(fmean(one.loss for one in seeds), fmean(one.token_accuracy for one in seeds))


def intervals(found: Comparison) -> Mapping[tuple[str | None, str], Interval]:
    """Intervals of 95 % by (silo, question): over seeds where there are several, else over test rows."""
    return {(one.silo, one.on): one.t or one.bootstrap for one in found.intervals}


def sides(found: Comparison) -> Mapping[str, Side]:
    """The answers to the two questions, `own` and, where it is known, `everybody`."""
    known = intervals(found)
    answers = {}
    for key, mean in (("own", found.mean_gain.own), ("everybody", found.mean_gain.everybody)):
        if mean is None:
            continue
        gains = [(gain.silo, float(getattr(gain, key))) for gain in found.gains]
        worse = sorted(((silo, gain) for silo, gain in gains if gain <= 0), key=lambda item: item[1])
        answers[key] = Side(len(gains) - len(worse), len(gains), mean, known.get((None, key)), worse)
    return answers
