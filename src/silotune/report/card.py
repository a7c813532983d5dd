"""The model card of a run's result (README.md beside the weights), in the form of the Hugging Face hub."""

import html
import json
from typing import Literal

from silotune import atomic
from silotune.federation.checkpoint import latest
from silotune.federation.run import RunFolder
from silotune.model import embedded
from silotune.model.base import generation_settings, load_tokenizer, locate, published_name
from silotune.model.licence import licence_of
from silotune.model.merging import Checked
from silotune.model.probing import SEQUENCES
from silotune.model.stopping import stops_of
from silotune.model.to_gguf import END_KEYS, other_ends
from silotune.report.figures import gather
from silotune.report.render import environment

Form = Literal["adapter", "merged", "gguf"]
"""What the card lies beside."""


def write(run: RunFolder) -> None:
    """Write the card into the adapter's folder."""
    atomic.write_text(run.adapter / "README.md", text(run, "adapter"))


def text(run: RunFolder, form: Form, checked: Checked | None = None, again: float | None = None) -> str:
    """The card's text.

    Args:
        run: a run that has come to its end.
        form: what the card lies beside.
        checked: how near merged weights are to base and adapter.
        again: the largest difference of any logit between those and what is read from the GGUF file.
    """
    recipe = run.recipe()
    figures = gather(run)
    saved = latest(run)
    profiles = saved.profiles if saved else {}
    names = {silo.name: silo.name if recipe.report.names else f"silo {number}"
             for number, silo in enumerate(figures.silos, 1)}  # fmt: skip
    means = figures.means
    location = locate(recipe.model.base)
    tokenizer = load_tokenizer(location)
    stops = stops_of(generation_settings(location), tokenizer)
    made = environment()
    made.filters["cell"] = _cell
    made.filters["yaml"] = json.dumps  # a JSON text is a YAML text too
    return made.get_template("card.md.j2").render(
        form=form,
        recipe=recipe,
        base=published_name(recipe.model.base),
        packed=recipe.model.base == embedded.NAME,
        licence=licence_of(recipe.model.base),
        figures=figures,
        names=names,
        tokens={name: profile.train_tokens for name, profile in profiles.items()},
        before=means.get(0),
        after=means[max(means)] if means and max(means) > 0 else None,
        environment=run.environment(),
        checked=checked,
        again=again,
        probes=SEQUENCES,
        stop_tokens={token: tokenizer.convert_ids_to_tokens(token) for token in stops.tokens},
        stop_texts=stops.texts,
        untold=", ".join(
            f"`{tokenizer.convert_ids_to_tokens(token)}`"
            for token in other_ends(tokenizer, generation_settings(location))[len(END_KEYS) :]
        ),
    )


def _cell(value: object) -> str:
    """Text that stays within its cell of a table, and is no markup."""
    escaped = html.escape(str(value), quote=False)
    return "".join(f"\\{c}" if c in "|\\`*_[]" else c for c in escaped)
