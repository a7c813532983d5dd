"""The model card of a run's adapter (README.md beside the weights)."""

from silotune import atomic
from silotune.federation.run import RunFolder
from silotune.model.base import published_name
from silotune.report.figures import gather
from silotune.report.render import environment


def write(run: RunFolder) -> None:
    """Write the card into the adapter's folder."""
    text = (
        environment()
        .get_template("card.md.j2")
        .render(
            recipe=run.recipe(),
            base=published_name(run.recipe().model.base),
            figures=gather(run),
            environment=run.environment(),
        )
    )
    atomic.write_text(run.adapter / "README.md", text)
