"""report.html: one page, self-contained, without script."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from silotune import atomic
from silotune.compare import comparison as compared
from silotune.federation.run import RunFolder
from silotune.inference import samples
from silotune.model.base import published_name
from silotune.recipe import dump_recipe, without_folders
from silotune.report import plots, privacy
from silotune.report.figures import Books, RunFigures, digests, gather
from silotune.report.matrix import ALONE, Matrix, intervals, sides
from silotune.report.matrix import matrix as matrix_of
from silotune.report.render import environment

T = TypeVar("T")

ROWS = 200
"""Silos in a table at most; the page says where the others stand."""
COLUMNS = 16
"""Rounds in a table at most, spread evenly, the first and the last among them; models as well."""


def write(run: RunFolder) -> Path:
    """Write the page of a run from what its folder holds, and return its path.

    Raises:
        RunError: compare.json or a saved state cannot be read.
    """
    text = environment().get_template("page.html.j2").render(live=False, **content(run))
    atomic.write_text(run.report_file, text)
    return run.report_file


def content(run: RunFolder, books: Books | None = None) -> dict[str, object]:
    """Everything that the templates tell of a run.

    Args:
        run: finished, or going on.
        books: what its ledger adds up to, where it has been read already.
    """
    recipe, figures, comparison = run.recipe(), gather(run, books), compared.read(run)
    shown = samples.read(run)
    rounds = [int(line["round"]) for line in figures.rounds]
    matrix = matrix_of(comparison) if comparison else None
    return {
        "recipe": recipe,
        "recipe_text": dump_recipe(without_folders(recipe)),
        "base": published_name(recipe.model.base),
        "environment": run.environment(),
        "figures": figures,
        "comparison": comparison,
        "matrix": matrix,
        "models": _columns(matrix) if matrix else [],
        "sides": sides(comparison) if comparison else {},
        "intervals": intervals(comparison) if comparison else {},
        "samples": shown,
        "sample_tokens": samples.SAMPLE_TOKENS,
        "privacy": privacy.measures(figures.isolation, shown=bool(shown)),
        "digests": digests(run) if figures.finished else {},
        "limit": ROWS,
        "rounds": spread(sorted(figures.means)),
        "traffic_rounds": spread(rounds),
        "train_losses": {line["round"]: line["train_loss"] for line in figures.rounds},
        "total_bytes": lambda way, round_: sum(figures.traffic.rounds(s.name, way)[round_] for s in figures.silos),
        "times": spread(figures.times, ROWS),
        "work": {silo.name: _work(figures, silo.name) for silo in figures.silos},
        "errors": spread([line for line in figures.rounds if line["e_agg"] is not None], ROWS),
        "left_out": sorted((round_, s.name, why) for s in figures.silos for round_, why in s.left_out),
        "plots": {
            "gains": plots.gains(comparison) if comparison else None,
            "curve": plots.curve(comparison) if comparison else None,
            "fall": None if comparison else plots.fall_by_silo(figures),
            "loss": plots.loss_by_round(figures),
            "bytes": plots.bytes_by_silo(figures),
            "bytes_by_round": plots.bytes_by_round(figures),
            "time": plots.time_by_round(figures),
            "error": plots.error_by_round(figures),
        },
    }  # fmt: skip


def spread(items: Sequence[T], most: int = COLUMNS) -> list[T]:
    """At most so many of a sequence, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _columns(found: Matrix) -> list[str]:
    """Models that have a column: all, or with many silos those that are not one silo's alone."""
    if len(found.models) <= COLUMNS:
        return list(found.models)
    return [name for name in found.models if not name.startswith(ALONE)][:COLUMNS]


def _work(figures: RunFigures, silo: str) -> Mapping[str, float]:
    """Seconds that a silo trained and evaluated, and those of the rounds in which it did neither."""
    own = [time.silos.get(silo, {}) for time in figures.times]
    train, evaluate = (sum(each.get(kind, 0.0) for each in own) for kind in ("train", "evaluate"))
    total = sum(time.seconds for time in figures.times)
    return {"train": train, "evaluate": evaluate, "idle": max(0.0, total - train - evaluate)}
