"""The plots of the page."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from silotune.compare.comparison import Comparison
from silotune.report.figures import RunFigures, SiloFigures, human_bytes
from silotune.report.svg import BAD, COLOURS, GOOD, INK, SOFT, Drawing, Plot, Size, label, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import LogLocator

NAMED = 12
"""Silos that have a colour and a name in a plot of lines; more are all alike, and the one pointed at says its name."""
LINES = 40
"""Silos that have a line or a bar of their own; more are drawn as their spread."""
POINTS = 600
"""Marks of one plot that say something when pointed at."""
BARS = 60
"""Rounds that have a bar or a dot of their own; more are drawn as an area or a plain line."""


def loss_by_round(figures: RunFigures) -> Plot | None:
    """Held-out loss by round: one thin line per silo, a heavy one for all held-out rows."""
    if not figures.means:
        return None

    def draw(size: Size) -> Drawing:
        drawing = Drawing("loss", size, 3.4 if not size.narrow else 3.6)
        axes = drawing.panels[0]
        scored = [silo for silo in figures.silos if silo.losses]
        if len(scored) > LINES:
            _spread(axes, scored)
        else:
            for index, silo in enumerate(scored):
                _line(axes, silo, index, named=len(scored) <= NAMED)
            _say_losses(drawing, scored)
        rounds = sorted(figures.means)
        losses = [figures.means[round_]["loss"] for round_ in rounds]
        axes.plot(rounds, losses, linewidth=2.4, marker=_marker(rounds), markersize=4, color=INK,
                  label="all held-out rows")  # fmt: skip
        for round_, loss in list(zip(rounds, losses, strict=True))[:POINTS]:
            drawing.point(axes, round_, loss, f"all held-out rows, round {round_}: {loss:.3f}")
        axes.set(xlabel="round (0 is the base model)", ylabel="held-out loss, nats per token")
        low, high = axes.dataLim.intervaly
        if low < high / 3:
            axes.set_ylim(bottom=0)
        _whole(axes)
        axes.grid(axis="y")
        drawing.legend(2 if size.narrow else 4)
        return drawing

    first, last = min(figures.means), max(figures.means)
    words = (
        f"Held-out loss of {len(figures.silos)} silos by round. Over all held-out rows it is "
        f"{figures.means[first]['loss']:.3f} nats per token in round {first} and {figures.means[last]['loss']:.3f} in "
        f"round {last}."
    )
    return plot(draw, words)


def _line(axes: "Axes", silo: SiloFigures, index: int, named: bool) -> None:
    rounds = sorted(silo.losses)
    losses = [silo.losses[r] for r in rounds]
    drawn = partial(axes.plot, rounds, losses, marker=_marker(rounds), markersize=2.5, linewidth=1.1)
    if named:
        dashes = ("-", "--")[index // len(COLOURS) % 2]
        drawn(color=COLOURS[index % len(COLOURS)], linestyle=dashes, label=label(silo.name))
    else:
        drawn(color=SOFT, alpha=0.6)


def _spread(axes: "Axes", silos: Sequence[SiloFigures]) -> None:
    rounds = sorted({round_ for silo in silos for round_ in silo.losses})
    found = [[silo.losses[r] for silo in silos if r in silo.losses] for r in rounds]
    levels = np.array([np.quantile(losses, (0, 0.1, 0.5, 0.9, 1)) for losses in found]).T
    axes.fill_between(rounds, levels[0], levels[4], color=COLOURS[0], alpha=0.15, linewidth=0, label="all silos")
    axes.fill_between(
        rounds, levels[1], levels[3], color=COLOURS[0], alpha=0.3, linewidth=0, label="middle 80 % of silos"
    )
    axes.plot(rounds, levels[2], color=COLOURS[0], linewidth=1.2, label="median silo")


def _say_losses(drawing: Drawing, silos: Sequence[SiloFigures]) -> None:
    every = 1 + sum(len(silo.losses) for silo in silos) // POINTS
    for silo in silos:
        for round_ in sorted(silo.losses)[::every]:
            loss, train = silo.losses[round_], silo.train_losses.get(round_)
            trained = f", in training {train:.3f}" if train is not None else ""
            drawing.point(drawing.panels[0], round_, loss, f"{silo.name}, round {round_}: {loss:.3f}{trained}")


# ------------------------------------------------------------------------------------------------ gains


def fall_by_silo(figures: RunFigures) -> Plot | None:
    """How far each silo's held-out loss fell below the base's."""
    falls = {silo.name: silo.fall for silo in figures.silos if silo.fall is not None}
    if not falls:
        return None
    words = (
        f"Fall of the held-out loss against the base, {len(falls)} silos: from {min(falls.values()):.3f} to "
        f"{max(falls.values()):.3f} nats per token."
    )
    return plot(lambda size: _gain_panels("fall", size, [("fall of the loss, nats per token", falls)]), words)


def gains(comparison: Comparison) -> Plot | None:
    """Gain over training alone: on its own rows and, where it is known, on everybody's, a panel each."""
    if not comparison.gains:
        return None
    panels = [("on own held-out rows", {gain.silo: gain.own for gain in comparison.gains})]
    everybody = {gain.silo: gain.everybody for gain in comparison.gains if gain.everybody is not None}
    if everybody:
        panels.append(("on everybody's", everybody))
    words = "Gain of the federated model over a silo's own, nats per token. " + " ".join(
        f"{title[0].upper()}{title[1:]}: {sum(value > 0 for value in values.values())} of {len(values)} silos are "
        f"better off, from {min(values.values()):+.3f} to {max(values.values()):+.3f}."
        for title, values in panels
    )
    return plot(lambda size: _gain_panels("gain", size, panels), words)


def _height(silos: int, frame: float) -> float:
    """Inches: a line for each silo that has a name; many without names need no more than a picture of them all."""
    return frame + (0.26 * silos if silos <= LINES else 3.0)


def _gain_panels(name: str, size: Size, panels: Sequence[tuple[str, Mapping[str, float]]]) -> Drawing:
    count = max(len(values) for _, values in panels)
    one = _height(count, 0.7)
    across = 1 if size.narrow else len(panels)
    down = len(panels) // across
    drawing = Drawing(name, size, one * down, down, across, sharey=len(panels) > 1 and across > 1)
    for axes, (title, values) in zip(drawing.panels, panels, strict=True):
        axes.set_title(title, color=SOFT)
        _signed_bars(drawing, axes, values)
    return drawing


def _signed_bars(drawing: Drawing, axes: "Axes", values: Mapping[str, float]) -> None:
    """Bars to both sides of zero, with their figures; many silos are sorted and have no names."""
    many = len(values) > LINES
    named = sorted(values.items(), key=lambda item: -item[1]) if many else list(values.items())
    heights = [value for _, value in named]
    colours = [GOOD if value > 0 else BAD for value in heights]
    # Bars that touch are given an edge in their own colour, or the page would shine through the seams.
    bars = axes.barh(range(len(named)), heights, 1.0 if many else 0.66, color=colours, edgecolor=colours,
                     linewidth=0.3 if many else 0)  # fmt: skip
    if many:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(named)} silos, sorted")
    else:
        axes.set_yticks(range(len(named)), [label(name) for name, _ in named])
        axes.bar_label(bars, [f"{value:+.3f}" for value in heights], padding=2, color=SOFT)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.margins(x=0.45 if drawing.size.narrow else 0.28, y=0.01)  # room for the figures at the bars' ends
    axes.set_ylim(len(named) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    for place, (name, value) in enumerate(named[:POINTS]):
        words = f"{name}: {value:+.4f} nats per token"
        drawing.area(axes, min(0, value), max(0, value), place - 0.4, place + 0.4, words)


def curve(comparison: Comparison) -> Plot | None:
    """Gain over alone against the rows that a silo holds, own rows and everybody's apart, the crossover marked."""
    points = sorted(comparison.curve or [], key=lambda point: point.rows)
    if not points:
        return None
    rows = [point.rows for point in points]
    panels = [("on own held-out rows", [point.own for point in points], comparison.crossover),
              ("on everybody's", [point.everybody for point in points], None)]  # fmt: skip

    def draw(size: Size) -> Drawing:
        across = 1 if size.narrow else 2
        drawing = Drawing("curve", size, 2.4 * 2 / across, 2 // across, across)
        for axes, (title, values, crossover) in zip(drawing.panels, panels, strict=True):
            axes.plot(rows, values, marker="o", markersize=3, color=COLOURS[0], linewidth=1.4)
            axes.axhline(0, color=SOFT, linewidth=0.8)
            if crossover is not None:
                axes.axvline(crossover, color=BAD, linewidth=1, linestyle="--")
                drawing.point(axes, crossover, 0, f"crossover at about {crossover:.0f} rows")
            axes.set_title(title, color=SOFT)
            axes.set(xlabel="training rows a silo holds", ylabel="gain, nats per token", xscale="log")
            named = _apart(rows, 5 if size.narrow else 8)
            axes.set_xticks(named, [f"{count:,}" for count in named])
            axes.minorticks_off()
            axes.grid(axis="y")
            for count, value in zip(rows, values, strict=True):
                drawing.point(axes, count, value, f"{count:,} rows: {value:+.4f} nats per token")
        return drawing

    words = "Gain over training alone against the rows that a silo holds."
    for title, values, _ in panels:
        told = (f"{value:+.3f} at {count} rows" for count, value in zip(rows, values, strict=True))
        words += f" {title[0].upper()}{title[1:]}: {', '.join(told)}."
    return plot(draw, words)


def _apart(rows: Sequence[int], most: float) -> list[int]:
    """Those of some ascending numbers whose names do not run into each other on a logarithmic axis, the last among
    them: neighbours are an equal part of its length apart at least, of which there are `most`."""
    least = (rows[-1] / rows[0]) ** (1 / most)
    kept = [rows[-1]]
    for count in reversed(rows[:-1]):
        if count * least <= kept[-1]:
            kept.append(count)
    return kept[::-1]


# ----------------------------------------------------------------------------------------------- traffic


def bytes_by_silo(figures: RunFigures) -> Plot | None:
    """What left and what reached each silo, beside its text and the base model, on a logarithmic scale."""
    silos = figures.silos
    if not silos:
        return None
    series = (
        ("its text", "s", COLOURS[2], [silo.text_bytes for silo in silos]),
        ("left the silo", "o", COLOURS[1], [silo.bytes_up for silo in silos]),
        ("reached the silo", "D", COLOURS[0], [silo.bytes_down for silo in silos]),
    )

    def draw(size: Size) -> Drawing:
        named = len(silos) <= LINES
        drawing = Drawing("bytes", size, _height(len(silos), 1.3))
        axes = drawing.panels[0]
        for name, marker, colour, values in series:
            axes.plot(values, range(len(silos)), marker, markersize=5 if named else 2, color=colour, label=name)
            if named:
                for place, (silo, value) in enumerate(zip(silos, values, strict=True)):
                    drawing.point(axes, value, place, f"{silo.name}, {name}: {human_bytes(value)}")
        axes.axvline(figures.base_bytes or 1, color=SOFT, linewidth=1.2, linestyle="--", label="the base model")
        axes.set(xscale="log", ylim=(len(silos) - 0.4, -0.6))
        if named:
            axes.set_yticks(range(len(silos)), [label(silo.name) for silo in silos])
        else:
            axes.set_yticks([])
            axes.set_ylabel(f"{len(silos)} silos by name")
        axes.xaxis.set_major_formatter(lambda value, _: human_bytes(value).replace(".0 ", " "))
        axes.xaxis.set_major_locator(_decades(axes, size))
        axes.grid(axis="x")
        axes.minorticks_off()
        drawing.legend(2 if size.narrow else 4)
        return drawing

    words = "Bytes over the whole run. " + " ".join(
        f"{name[0].upper()}{name[1:]}: {human_bytes(min(values))} to {human_bytes(max(values))}."
        for name, _, _, values in series
    )
    return plot(draw, f"{words} The base model: {human_bytes(figures.base_bytes)}.")


def _decades(axes: "Axes", size: Size) -> "LogLocator":
    from matplotlib.ticker import LogLocator

    low, high = axes.get_xlim()
    every = 2 if size.narrow and high / low > 1e5 else 1
    return LogLocator(base=10.0**every, numticks=12)


def bytes_by_round(figures: RunFigures) -> Plot | None:
    """Bytes that left all silos and that reached them, by round."""
    names = [silo.name for silo in figures.silos]
    rounds = sorted({int(line["round"]) for line in figures.rounds})
    if not rounds:
        return None
    up, down = ([sum(figures.traffic.rounds(name, way)[r] for name in names) for r in rounds] for way in ("up", "down"))
    stacks = [("left the silos", COLOURS[1], up), ("reached the silos", COLOURS[0], down)]
    words = (
        f"Bytes of all silos together by round: in all {human_bytes(sum(up))} left the silos and "
        f"{human_bytes(sum(down))} reached them."
    )
    return plot(lambda size: _stacked("bytes-round", size, rounds, stacks, human_bytes), words)


# -------------------------------------------------------------------------------------------------- time


def time_by_round(figures: RunFigures) -> Plot | None:
    """Seconds of each round: training, evaluation, the rest."""
    times = figures.times
    if not times:
        return None
    parts = [("training", [t.training for t in times]), ("evaluation", [t.evaluation for t in times]),
             ("waiting and overhead", [t.rest for t in times])]  # fmt: skip
    stacks = [(name, colour, values) for (name, values), colour in zip(parts, COLOURS, strict=False)]
    total = sum(t.seconds for t in times)
    words = f"Seconds by round, {total:.0f} in all: " + ", ".join(f"{n} {sum(v):.0f}" for n, v in parts) + "."
    rounds = [t.round for t in times]
    return plot(lambda size: _stacked("time", size, rounds, stacks, lambda value: f"{value:,.1f} s"), words)


def _stacked(
    name: str, size: Size, rounds: Sequence[int], stacks: Sequence[tuple[str, str, Sequence[float]]],
    shown: Callable[[float], str],
) -> Drawing:  # fmt: skip
    """Bars on one another by round; an area where there are many rounds."""
    drawing = Drawing(name, size, 2.6)
    axes = drawing.panels[0]
    if len(rounds) > BARS:
        titles, colours, layers = zip(*stacks, strict=True)
        axes.stackplot(rounds, layers, colors=colours, labels=titles, linewidth=0)
    else:
        bottom = np.zeros(len(rounds))
        for title, colour, values in stacks:
            heights = np.array(values, float)
            axes.bar(rounds, heights, 0.7, bottom=bottom, color=colour, label=title)
            for round_, low, height, value in zip(rounds, bottom, heights, values, strict=True):
                if height > 0:
                    drawing.area(
                        axes,
                        round_ - 0.35,
                        round_ + 0.35,
                        low,
                        low + height,
                        f"round {round_}, {title}: {shown(value)}",
                    )
            bottom = bottom + heights
    axes.set(xlabel="round (0 is the base model)")
    axes.yaxis.set_major_formatter(lambda value, _: shown(value).replace(".0 ", " "))
    _whole(axes)
    axes.grid(axis="y")
    drawing.legend(2 if size.narrow else 4)
    return drawing


def error_by_round(figures: RunFigures) -> Plot | None:
    """e_agg by round."""
    found = [(int(line["round"]), float(line["e_agg"])) for line in figures.rounds if line["e_agg"] is not None]
    if not found:
        return None

    def draw(size: Size) -> Drawing:
        drawing = Drawing("error", size, 2.2)
        axes = drawing.panels[0]
        rounds, errors = zip(*found, strict=True)
        axes.plot(rounds, errors, marker=_marker(rounds), markersize=2.5, linewidth=1.4, color=COLOURS[0])
        axes.axhline(0.1, color=SOFT, linewidth=0.8, linestyle="--")
        for round_, error in found[:POINTS]:
            drawing.point(axes, round_, error, f"round {round_}: {error:.4f}")
        axes.set(xlabel="round", ylabel="e_agg", ylim=(0, max(0.12, max(errors) * 1.15)))
        _whole(axes)
        axes.grid(axis="y")
        return drawing

    worst = max(found, key=lambda item: item[1])
    words = f"e_agg by round: highest {worst[1]:.3f} in round {worst[0]}, {found[-1][1]:.3f} in the last."
    return plot(draw, words)


def _marker(rounds: Sequence[int]) -> str:
    """A dot for each round, unless they would run together."""
    return "o" if len(rounds) <= BARS else ""


def _whole(axes: "Axes") -> None:
    """Whole numbers on the axis of rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
