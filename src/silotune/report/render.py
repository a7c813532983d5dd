"""Jinja with this package's templates: strict about names, and everything escaped in HTML."""

import jinja2

from silotune.report.figures import human_bytes


def environment() -> jinja2.Environment:
    """The environment that all templates are rendered in."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("silotune.report", "."),
        autoescape=jinja2.select_autoescape(("html.j2", "html"), default_for_string=False, default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["bytes"] = human_bytes
    made.filters["nats"] = lambda value: "-" if value is None else f"{value:.3f}"
    made.filters["number"] = lambda value: f"{value:g}"
    made.filters["percent"] = lambda value: "-" if value is None else f"{100 * value:.1f} %"
    return made
