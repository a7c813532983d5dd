"""What `silotune compare` and `silotune evaluate` show in the terminal."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from silotune.compare.comparison import Cell, Comparison, Everybody, Gain, MeanGain
from silotune.compare.later import Evaluation
from silotune.compare.statistics import Interval
from silotune.data.read.files import printable
from silotune.report.matrix import ALONE, OWN, Matrix, intervals
from silotune.report.matrix import matrix as matrix_of
from silotune.training.scores import LabelScores

EVERYBODY = "everybody"


def show_comparison(found: Comparison, console: Console) -> None:
    """Print the matrix, the gains, the curve, and what they rest on."""
    whole = matrix_of(found)
    console.print(_own_rows(found, whole) if OWN in whole.models else _matrix(found, whole))
    if any(cell.scores for cell in found.matrix):
        console.print(_tasks(found.everybody))
    console.print(_gains(found))
    if found.curve:
        console.print(_curve(found))
    for line in (*_in_words(found), *found.remarks, found.budget.text):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_evaluation(found: Evaluation, console: Console) -> None:
    """Print losses and scores on text that came later."""
    table = _table("loss on all rows, nats per token", "rows", "model", "loss", "token accuracy", "rows", "tokens")
    for cell in found.matrix:
        table.add_row(_shown(cell.silo), cell.model, *_figures(cell))
    for row in found.everybody if len({cell.silo for cell in found.matrix}) > 1 else ():
        table.add_row(EVERYBODY, row.model, *_figures(row))
    console.print(table)
    if any(row.scores for row in found.everybody):
        console.print(_tasks(found.everybody))
    for line in found.remarks:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _shown(name: str) -> str:
    return escape(printable(name))


def _figures(row: Cell | Everybody) -> tuple[str, ...]:
    return f"{row.loss:.3f}", f"{100 * row.token_accuracy:.1f} %", f"{row.rows:,}", f"{row.tokens:,}"


def _matrix(found: Comparison, whole: Matrix) -> Table:
    """A row a model, a column a silo's held-out rows; means over seeds."""
    of = "" if len(found.seeds) == 1 else f", means over {len(found.seeds)} seeds"
    table = _table(f"held-out loss, nats per token{of}", "model", *map(_shown, whole.silos), EVERYBODY,
                   "tokens trained on")  # fmt: skip
    for model in whole.models:
        tokens = fmean(one.tokens for one in found.budget.models if one.model == model)
        table.add_row(_shown(model), *(_loss(whole, model, silo) for silo in (*whole.silos, None)), f"{tokens:,.0f}")
    return table


def _own_rows(found: Comparison, whole: Matrix) -> Table:
    """One row per silo, one column per model, where no silo's own model was tested on another's rows."""
    tokens = {one.model: f"{one.tokens:,}" for one in found.budget.models}
    table = _table("held-out loss on own rows, nats per token", "silo", *whole.models, "tokens trained on, alone")
    table.caption = f"tokens trained on, federated: {tokens['federated']}"
    for silo in (*whole.silos, None):
        name = EVERYBODY if silo is None else _shown(silo)
        table.add_row(name, *(_loss(whole, model, silo) for model in whole.models), tokens.get(f"{ALONE}{silo}", ""))
    return table


def _loss(whole: Matrix, model: str, silo: str | None) -> str:
    figure = whole.figure(model, silo)
    return f"{figure.loss:.3f}" if figure else ""


def _tasks(rows: Sequence[Everybody]) -> Table:
    """Task scores over everybody's rows."""
    table = _table("task scores, everybody's rows", "model", "accuracy", "macro F1", "majority", "invalid", "labelled",
                   "exact", "token F1", "ROUGE-L", "chrF", "answers")  # fmt: skip
    several = len({row.seed for row in rows}) > 1
    for row in rows:
        labels = row.scores.labels if row.scores else None
        answers = row.scores.answers if row.scores else None
        numbers = [*_of_labels(labels)]
        if answers:
            shares = (answers.exact_match, answers.token_f1, answers.rouge_l)
            numbers += [*(f"{value:.3f}" for value in shares), f"{answers.chrf:.1f}", f"{answers.answers:,}"]
        table.add_row(_shown(row.model) + (f", seed {row.seed}" if several else ""), *numbers)
    return table


def _of_labels(labels: LabelScores | None) -> tuple[str, ...]:
    if labels is None:
        return ("", "", "", "", "")
    shares = (labels.accuracy, labels.macro_f1, labels.majority, labels.invalid)
    return (*(f"{value:.3f}" for value in shares), f"{labels.rows:,}")


def _gains(found: Comparison) -> Table:
    """Gain over alone with its intervals, a row a silo."""
    table = _table("gain of federated over alone, nats per token (above 0: federated is better)", "silo",
                   "own rows", "interval", "everybody's rows", "interval", "own accuracy", "everybody's")  # fmt: skip
    how = intervals(found)
    for gain in found.gains:
        _gain_row(table, gain.silo, gain, how)
    _gain_row(table, None, found.mean_gain, how)
    return table


def _gain_row(
    table: Table, silo: str | None, gain: Gain | MeanGain, how: Mapping[tuple[str | None, str], Interval]
) -> None:
    own, everybody, *accuracies = (
        "" if value is None else f"{value:+.3f}"
        for value in (gain.own, gain.everybody, gain.own_accuracy, gain.everybody_accuracy)
    )
    table.add_row("mean" if silo is None else _shown(silo), own, _interval(how.get((silo, "own"))),
                  everybody, _interval(how.get((silo, "everybody"))), *accuracies)  # fmt: skip


def _interval(interval: Interval | None) -> str:
    return f"{interval[0]:+.3f} to {interval[1]:+.3f}" if interval else ""


def _curve(found: Comparison) -> Table:
    table = _table("gain of federated over alone by rows a silo holds, means over silos", "rows", "own rows",
                   "everybody's rows")  # fmt: skip
    for point in found.curve or ():
        table.add_row(f"{point.rows:,}", f"{point.own:+.3f}", f"{point.everybody:+.3f}")
    return table


def _in_words(found: Comparison) -> list[str]:
    own, everybody = found.mean_gain.own, found.mean_gain.everybody
    also = "" if everybody is None else f", on everybody's {_better(everybody)}"
    lines = [f"On its own rows a silo is {_better(own)} than alone{also}: means over silos."]
    if "pooled" not in {row.model for row in found.everybody}:
        return lines
    if found.share_of_pooled_gain is None:
        lines.append("Pooling all text gains nothing over the base here, so there is no share of that gain.")
    else:
        lines.append(f"Federated reaches {100 * found.share_of_pooled_gain:.0f} % of what pooling all text gains.")
    if found.curve:
        place = "nowhere between these" if found.crossover is None else f"at about {found.crossover:.0f} rows per silo"
        lines.append(f"The gain on own rows changes its sign {place}.")
    how = "Student's t over seeds" if len(found.seeds) > 1 else "paired bootstrap over held-out rows"
    lines.append(f"Intervals of 95 %: {how}.")
    return lines


def _better(gain: float) -> str:
    return f"{abs(gain):.3f} nats per token {'better' if gain > 0 else 'worse'} off"
