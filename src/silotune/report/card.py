"""The model card of a run's adapter (README.md beside the weights)."""

from silotune.federation.run import RunFolder
from silotune.report.figures import gather
from silotune.report.render import environment


def write(run: RunFolder) -> None:
    """Write the card into the adapter's folder."""
    text = (
        environment()
        .get_template("card.md.j2")
        .render(recipe=run.recipe(), figures=gather(run), environment=run.environment())
    )
    unfinished = run.adapter / ".README.md"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(run.adapter / "README.md")
