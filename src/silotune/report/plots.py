"""Plots as SVG for the page: drawn with matplotlib, no script, readable in print."""

import html
import io
from collections.abc import Sequence

from silotune.report.comparison import Comparison
from silotune.report.figures import RunFigures

COLOURS = ("#3b6fb6", "#c4622d", "#3f8f5b", "#8a5aa8", "#b3902b", "#4a9aa8", "#a84a6b", "#6b6b6b")


def loss_by_round(figures: RunFigures) -> str:
    """Held-out loss by round: a thin line a silo, a heavy one for the mean; an SVG element."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for index, silo in enumerate(figures.silos):
        rounds = sorted(silo.losses)
        axes.plot(rounds, [silo.losses[r] for r in rounds], marker="o", markersize=3.5, linewidth=1.3,
                  color=COLOURS[index % len(COLOURS)], label=plain(silo.name))  # fmt: skip
    rounds = sorted(figures.means)
    axes.plot(
        rounds, [figures.means[r]["loss"] for r in rounds], linewidth=2.6, color="#808080", label="all held-out rows"
    )
    axes.set_xlabel("round (0 is the base model)")
    axes.set_ylabel("held-out loss, nats a token")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, ncols=2 if len(figures.silos) > 5 else 1)
    return _svg(figure, axes)


def bytes_by_silo(figures: RunFigures) -> str:
    """Bytes that left and reached each silo over the run; an SVG element."""
    from matplotlib.figure import Figure

    names = [plain(silo.name) for silo in figures.silos]
    figure = Figure(figsize=(7.6, 1.2 + 0.42 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    places: Sequence[float] = range(len(names))
    for offset, label, colour, values in (
        (-0.2, "left the silo", COLOURS[0], [silo.bytes_up for silo in figures.silos]),
        (0.2, "reached the silo", COLOURS[1], [silo.bytes_down for silo in figures.silos]),
    ):
        axes.barh(
            [place + offset for place in places], [value / 1e6 for value in values], 0.36, label=label, color=colour
        )
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set_xlabel("MB over the whole run")
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return _svg(figure, axes)


def gain_by_rows(found: Comparison) -> str:
    """Gain over alone against the rows that a silo holds, the crossover marked; an SVG element with its text.

    Args:
        found: a comparison with a curve.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    points = found.curve or []
    rows = [point.rows for point in points]
    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="#808080", linewidth=1)
    for name, colour, values, intervals in (
        ("on its own rows", COLOURS[0], [point.own for point in points], [point.own_t for point in points]),
        ("on everybody's rows", COLOURS[1], [p.everybody for p in points], [p.everybody_t for p in points]),
    ):
        axes.plot(rows, values, marker="o", markersize=4, linewidth=1.8, color=colour, label=name)
        sure = [interval for interval in intervals if interval is not None]
        if len(sure) == len(rows):
            axes.fill_between(rows, [one[0] for one in sure], [one[1] for one in sure], color=colour, alpha=0.15)
    if found.crossover is not None:
        axes.axvline(found.crossover, color="#808080", linestyle="--", linewidth=1)
        axes.annotate(f"about {found.crossover:.0f} rows", (found.crossover, 0), (5, 6), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xticks(rows, [f"{count:,}" for count in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training rows that a silo holds")
    axes.set_ylabel("gain over alone, nats a token")
    axes.legend(frameon=False, fontsize=8)
    return _described(_svg(figure, axes), _curve_in_words(found))


def _curve_in_words(found: Comparison) -> str:
    listed = "; ".join(
        f"{point.rows} rows: {point.own:+.3f} on its own rows, {point.everybody:+.3f} on everybody's"
        for point in found.curve or ()
    )
    changes = (
        "never changes its sign" if found.crossover is None else f"changes its sign at about {found.crossover:.0f}"
    )
    return (
        "Mean gain of the federated model over a silo alone, in nats a token, against the training rows that a silo "
        f"holds. {listed}. On its own rows the gain {changes}."
    )


def _described(svg: str, text: str) -> str:
    """The same for those who cannot see it."""
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(text)}"', 1)


def plain(name: str) -> str:
    """A silo's name as matplotlib shows it as it stands (a dollar sign would start mathematics)."""
    return name.replace("$", r"\$")


def _svg(figure: "object", axes: "object") -> str:
    """Text stays text and takes the page's colour, so the plot serves a light and a dark page."""
    import matplotlib

    axes.spines[["top", "right"]].set_visible(False)  # type: ignore[attr-defined]
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "silotune"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})  # type: ignore[attr-defined]
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    return svg.replace("#000000", "currentColor")
