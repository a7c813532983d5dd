"""A comparison out of figures that silos told, where their text is not here: each silo's own row, and no other.

What the base and the shared model lose on a silo's rows is known from the run; what the silo's own model loses there
the silo says itself (`federation.alone`). Nobody tests a silo's model on another's rows, and nobody pools the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from silotune.compare import comparison
from silotune.compare.comparison import (
    SAME_BUDGET,
    TOKENS_BESIDE,
    Budget,
    Cell,
    Comparison,
    Everybody,
    Gain,
    MeanGain,
    Trained,
)
from silotune.data.read.files import printable
from silotune.errors import FederationError
from silotune.federation.run import RunFolder
from silotune.federation.spent import Spent, spent_by, total
from silotune.report import page
from silotune.report.figures import SiloFigures, gather
from silotune.settings import Recipe
from silotune.wire.profile import Alone

REMARK = (
    "Each silo computed its own row, where its text lies, and sent figures: no silo's own model was tested on "
    "another's rows, and none was trained on all text. Task scores are not among the figures."
)


def compare(run: RunFolder, told: Mapping[str, Alone], missing: Mapping[str, str]) -> Comparison:
    """Compare a finished run's model with what each silo trained alone; RUN/compare.json and the page are written.

    Args:
        run: its folder.
        told: what silos said of their own models, by name; each scored the last round of the run.
        missing: the other silos, and why nothing is known of them.

    Raises:
        FederationError: no silo can be compared.
    """
    recipe, figures = run.recipe(), gather(run)
    silos = [silo for silo in figures.silos if silo.name in told]
    if not silos:
        listed = "; ".join(f"{printable(name)}: {reason}" for name, reason in missing.items())
        raise FederationError(f"{run.path}: no silo can be compared ({listed}).")
    own = {silo.name: _cell(f"alone:{silo.name}", silo.name, recipe.seed, told[silo.name]) for silo in silos}
    base = [_of_run("base", silo, 0, recipe.seed) for silo in silos if 0 in silo.losses]
    federated = [_of_run("federated", silo, silo.last, recipe.seed) for silo in silos]
    scored = {cell.silo for cell in base}
    both = [cell for cell in federated if cell.silo in scored]
    late = [silo.name for silo in silos if silo.name not in scored]
    gains = [Gain(silo=cell.silo, own=own[cell.silo].loss - cell.loss) for cell in federated]
    found = Comparison(
        budget=_budget(run, recipe, figures.silos, told),
        matrix=[*base, *own.values(), *federated],
        everybody=[_over(base), _over(both)] if base else [],
        gains=gains,
        mean_gain=MeanGain(own=sum(gain.own for gain in gains) / len(gains)),
        share_of_pooled_gain=None,
        seeds=[recipe.seed],
        intervals=[],
        remarks=[REMARK, *_remarks(late, missing)],
    )
    comparison.write(run, found)
    page.write(run)
    return found


def _remarks(late: Sequence[str], missing: Mapping[str, str]) -> list[str]:
    """Which silos have no figure of the base, and which are not compared and why."""
    found = [f"{printable(name)} did not score the base, so its rows are not among everybody's." for name in late]
    return found + [f"{printable(name)} is not in it: {why.rstrip('.')}." for name, why in missing.items()]


def _cell(model: str, silo: str, seed: int, told: Alone) -> Cell:
    return Cell(model=model, silo=silo, seed=seed, rows=told.rows, tokens=told.tokens, loss=told.loss / told.tokens,
                token_accuracy=told.correct / told.tokens)  # fmt: skip


def _of_run(model: str, silo: SiloFigures, round_: int, seed: int) -> Cell:
    return Cell(model=model, silo=silo.name, seed=seed, rows=silo.test_rows, tokens=silo.tokens[round_],
                loss=silo.losses[round_], token_accuracy=silo.accuracies[round_])  # fmt: skip


def _over(cells: Sequence[Cell]) -> Everybody:
    """A model on the rows of all silos that are compared, each token counting the same."""
    tokens = sum(cell.tokens for cell in cells)
    loss = sum(cell.loss * cell.tokens for cell in cells) / tokens
    accuracy = sum(cell.token_accuracy * cell.tokens for cell in cells) / tokens
    return Everybody(model=cells[0].model, seed=cells[0].seed, rows=sum(cell.rows for cell in cells), tokens=tokens,
                     loss=loss, token_accuracy=accuracy)  # fmt: skip


def _budget(run: RunFolder, recipe: Recipe, silos: Sequence[SiloFigures], told: Mapping[str, Alone]) -> Budget:
    spent = spent_by(run.metrics())
    rows = {silo.name: silo.train_rows for silo in silos}
    own = [
        (f"alone:{name}", rows[name], Spent(spent[name].rounds, one.steps, one.train_tokens, one.train_loss_tokens))
        for name, one in told.items()
    ]
    models = [("base", 0, Spent(0, 0, 0, 0)), *own,
              ("federated", sum(rows.values()), total(spent.values(), recipe.training.rounds))]  # fmt: skip
    trained = [Trained(model=name, seed=recipe.seed, train_rows=held, **asdict(one)) for name, held, one in models]
    training = recipe.training
    text = f"{SAME_BUDGET} {TOKENS_BESIDE}"
    return Budget(text=text, rounds=training.rounds, batch=training.batch * training.accumulation, models=trained)
