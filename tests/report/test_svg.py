"""Drawings as parts of a page."""

import re
from xml.etree import ElementTree

import pytest
from tests.report.helpers import make_run

from silotune.report import plots
from silotune.report.figures import gather
from silotune.report.svg import COLOURS, LONGEST_LABEL, NARROW, WIDE, Drawing, label, plot

pytestmark = pytest.mark.drawn


@pytest.fixture
def figures(tmp_path):
    return gather(make_run(tmp_path / "run"))


def test_a_plot_is_text_in_the_pages_colours_with_figures_on_pointing(figures):
    made = plots.loss_by_round(figures)
    for svg in (made.wide, made.narrow):
        ElementTree.fromstring(svg.replace("xlink:href", "href"))
        assert svg.startswith("<svg viewBox=") and "metadata" not in svg and "#000000" not in svg
        assert not [colour for colour in COLOURS if colour in svg] and "var(--p0)" in svg
        assert re.search(r"<text[^>]*>\s*silo0", svg)
        assert "<title>silo1, round 2: 1.500, in training 3.000</title>" in svg
        assert "<title>all held-out rows, round 0: 3.500</title>" in svg
    assert made.words == (
        "Held-out loss of 2 silos by round. Over all held-out rows it is 3.500 nats per token in round 0 and 1.250 in round 2."
    )


def test_no_name_stands_twice_on_a_page(figures):
    drawn = [
        plots.loss_by_round(figures),
        plots.time_by_round(figures),
        plots.bytes_by_round(figures),
        plots.error_by_round(figures),
    ]
    ids = [name for made in drawn for svg in (made.wide, made.narrow) for name in re.findall(r'id="([^"]+)"', svg)]
    assert ids and len(ids) == len(set(ids))
    for svg in (svg for made in drawn for svg in (made.wide, made.narrow)):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert used <= set(re.findall(r'id="([^"]+)"', svg))


def test_marks_lie_where_the_data_is():
    def draw(size):
        drawing = Drawing("test", size, 2.0)
        axes = drawing.panels[0]
        axes.plot([0, 10], [0, 4], marker="o", color=COLOURS[0])
        axes.set(xlabel="x" * 30, ylabel="y")
        drawing.point(axes, 0, 0, "first")
        drawing.point(axes, 10, 4, "last")
        drawing.area(axes, 2, 4, 1, 3, "a < b")
        return drawing

    svg = plot(draw, "w").wide
    drawn = [
        (float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill: var\(--p0\)', svg)
    ]
    hits = [(float(x), float(y)) for x, y in re.findall(r'<circle class="hit" cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert len(drawn) == len(hits) == 2
    for (x, y), (found_x, found_y) in zip(drawn, hits, strict=True):
        assert x == pytest.approx(found_x, abs=0.11) and y == pytest.approx(found_y, abs=0.11)
    assert "<title>a &lt; b</title>" in svg


def test_the_same_figures_give_the_same_drawing(figures):
    assert plots.bytes_by_silo(figures) == plots.bytes_by_silo(figures)


def test_names_on_an_axis_do_not_run_together():
    assert plots._apart([20, 50, 90, 100, 380, 400], 5) == [20, 50, 100, 400]
    assert plots._apart([20], 5) == [20]


def test_rounds_are_whole_numbers_even_where_there_is_one(tmp_path):
    svg = plots.loss_by_round(gather(make_run(tmp_path / "run", done=0))).wide
    assert not re.search(r">\s*-?0\.0", svg)


def test_sizes():
    assert WIDE.width > NARROW.width and NARROW.narrow


def test_long_names_are_cut_and_dollars_stay():
    assert len(label("x" * 64)) == LONGEST_LABEL and label("a$b") == r"a\$b" and label("\x1b") == "\\x1b"


def test_no_plot_without_figures(tmp_path):
    empty = gather(make_run(tmp_path / "run", done=-1))
    for draw in (
        plots.loss_by_round,
        plots.bytes_by_round,
        plots.time_by_round,
        plots.error_by_round,
        plots.fall_by_silo,
        plots.bytes_by_silo,
    ):
        assert draw(empty) is None
