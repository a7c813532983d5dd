"""Drawings of matplotlib as parts of a page: text that stays text, the page's own colours, and figures on pointing.

A drawing is an `<svg>` element without script. Where the reader points at a mark, the browser shows the `<title>` of an
invisible shape above it.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from silotune.data.read.files import printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

COLOURS = ("#3b6fb6", "#c4622d", "#3f8f5b", "#8a5aa8", "#b3902b", "#4a9aa8", "#a84a6b", "#6b6b6b")
"""Colours of the series; on the page each is a variable, `--p0` to `--p7`, so that a dark page has its own."""
INK, SOFT, RULE, GOOD, BAD = "#010101", "#5c6671", "#d9dee3", "#2c7a4c", "#b3402b"
"""Colours of frame lines and of judgements; on the page `--ink`, `--soft`, `--line`, `--good` and `--bad`."""
VARIABLES = {
    **{colour: f"var(--p{index})" for index, colour in enumerate(COLOURS)},
    INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--line)", GOOD: "var(--good)", BAD: "var(--bad)",
    "#000000": "currentColor",
}  # fmt: skip
COLOUR = re.compile("|".join(VARIABLES))
LONGEST_LABEL = 22
"""Characters of a name inside a drawing; whole in the title and in the table beside it."""


@dataclass(frozen=True)
class Size:
    """How large a drawing is; what is drawn for a phone is narrow and not shrunk, so that its words can be read."""

    name: str
    width: float
    """Inches."""
    font: float
    """Points."""
    narrow: bool


WIDE = Size("wide", 7.6, 8.0, False)
NARROW = Size("narrow", 4.0, 9.0, True)


class Drawing:
    """A figure of matplotlib, and what its marks say when pointed at."""

    def __init__(
        self, name: str, size: Size, height: float, rows: int = 1, columns: int = 1, sharey: bool = False
    ) -> None:
        """An empty drawing.

        Args:
            name: of the drawing; two on one page must differ.
            size: of it.
            height: inches.
            rows: of panels.
            columns: of panels.
            sharey: give the panels of a row one scale.
        """
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        self.name, self.size = name, size
        self._layout = ConstrainedLayoutEngine()
        self.figure = Figure(figsize=(size.width, height), layout=self._layout, dpi=72)
        self.panels: Sequence[Axes] = list(self.figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
        self._marks: list[tuple[Axes, Sequence[tuple[float, float]], str]] = []

    def point(self, axes: "Axes", x: float, y: float, words: str) -> None:
        """Have a place on some axes say something when pointed at."""
        self._marks.append((axes, [(x, y)], words))

    def area(self, axes: "Axes", left: float, right: float, bottom: float, top: float, words: str) -> None:
        """Have a rectangle on some axes say something when pointed at."""
        self._marks.append((axes, [(left, bottom), (right, top)], words))

    def legend(self, columns: int) -> None:
        """Say above the panels which mark is which, each once."""
        found: dict[str, Artist] = {}
        for axes in self.panels:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        if found:
            self.figure.legend(list(found.values()), list(found), loc="outside upper left", ncols=columns,
                               frameon=False, handlelength=1.6, columnspacing=1.2, borderaxespad=0.2)  # fmt: skip

    def svg(self) -> Markup:
        """The drawing as an element of HTML."""
        import matplotlib

        out = io.StringIO()
        options: dict[RcKeyType, str] = {"svg.fonttype": "none", "svg.hashsalt": f"{self.name} {self.size.name}"}
        with warnings.catch_warnings(), matplotlib.rc_context(options):
            # Names in scripts that matplotlib's own font lacks are drawn by the reader's browser, which has others.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
            self._layout.execute(self.figure)
            self.figure.set_layout_engine(None)  # it is drawn once, and the marks below are placed by this layout
            self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return Markup(_for_page(out.getvalue(), "".join(self._shapes())))

    def _shapes(self) -> list[str]:
        height = self.figure.bbox.height
        shapes = []
        for axes, corners, words in self._marks:
            places = [axes.transData.transform(corner) for corner in corners]
            (x, y), (right, top) = places[0], places[-1]
            title = f"<title>{escape(printable(words))}</title>"
            if len(places) == 1:
                shapes.append(f'<circle class="hit" cx="{x:.1f}" cy="{height - y:.1f}" r="7">{title}</circle>')
            else:
                wide, high = max(abs(right - x), 4.0), max(abs(top - y), 4.0)
                shapes.append(
                    f'<rect class="hit" x="{min(x, right):.1f}" y="{height - max(y, top):.1f}" width="{wide:.1f}" '
                    f'height="{high:.1f}">{title}</rect>'
                )
        return shapes


def _style(size: Size) -> "dict[RcKeyType, object]":
    return {
        "font.size": size.font, "legend.fontsize": size.font, "axes.titlesize": size.font, "axes.labelsize": size.font,
        "xtick.labelsize": size.font, "ytick.labelsize": size.font, "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT,
        "axes.labelcolor": SOFT, "axes.titlelocation": "left", "grid.color": RULE, "grid.linewidth": 0.6,
        "axes.axisbelow": True, "axes.unicode_minus": False,
    }  # fmt: skip


def _for_page(svg: str, marks: str) -> str:
    """Cut a file of SVG down to its element, in the page's colours, with the marks on top.

    Names of groups are left out: several drawings on one page would share them.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'style="[^"]*"', lambda style: COLOUR.sub(lambda found: VARIABLES[found.group()], style.group()), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return svg.replace("</svg>", f"{marks}</svg>")


@dataclass(frozen=True)
class Plot:
    """One plot in its two sizes, and its text for who cannot see it."""

    wide: Markup
    narrow: Markup
    words: str


def plot(draw: Callable[[Size], Drawing], words: str) -> Plot:
    """Draw both sizes, in the style of each."""
    import matplotlib

    drawn = []
    for size in (WIDE, NARROW):
        with matplotlib.rc_context(_style(size)):
            drawn.append(draw(size).svg())
    wide, narrow = drawn
    return Plot(wide, narrow, printable(words))


def plain(name: str) -> str:
    """A silo's name as matplotlib shows it as it stands (a dollar sign would start mathematics)."""
    return printable(name).replace("$", r"\$")


def label(name: str) -> str:
    """A name inside a drawing: cut where it is long."""
    shown = printable(name)
    return plain(shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…")
