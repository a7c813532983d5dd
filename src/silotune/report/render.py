"""Jinja with this package's templates: strict about names, and everything escaped in HTML."""

import functools

import jinja2

from silotune.data.read.files import printable
from silotune.report.figures import human_bytes

NONE = "-"
"""What stands where there is no figure."""


@functools.cache
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
    made.filters["nats"] = lambda value: NONE if value is None else f"{value:.3f}"
    made.filters["signed"] = lambda value: NONE if value is None else f"{value:+.3f}"
    made.filters["points"] = lambda share: NONE if share is None else f"{100 * share:+.1f}"
    made.filters["perplexity"] = lambda value: f"{value:,.1f}" if value < 1e6 else f"{value:.0e}"
    made.filters["number"] = lambda value: f"{value:g}"
    made.filters["percent"] = lambda value: NONE if value is None else f"{100 * value:.1f}\u00a0%"
    made.filters["seconds"] = lambda value: NONE if value is None else f"{value:,.1f}"
    made.filters["count"] = lambda value: f"{value:,}"
    made.filters["duration"] = duration
    made.filters["shown"] = printable
    return made


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `19 min 21 s`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
