"""report.html: one page, self-contained, without script."""

from markupsafe import Markup

from silotune import atomic
from silotune.federation.run import RunFolder
from silotune.recipe import dump_recipe, without_folders
from silotune.report import plots, samples
from silotune.report.figures import gather
from silotune.report.render import environment


def write(run: RunFolder) -> None:
    """Write the page of a run from what its folder holds."""
    figures = gather(run)
    text = (
        environment()
        .get_template("page.html.j2")
        .render(
            recipe=run.recipe(),
            recipe_text=dump_recipe(without_folders(run.recipe())),
            figures=figures,
            samples=samples.read(run),
            environment=run.environment(),
            loss_plot=Markup(plots.loss_by_round(figures)),
            bytes_plot=Markup(plots.bytes_by_silo(figures)),
        )
    )
    atomic.write_text(run.report_file, text)
