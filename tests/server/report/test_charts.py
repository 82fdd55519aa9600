"""Figures drawn by hand put numbers where they belong, and stay small."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.report import charts, svg
from server.report.charts import Band, Pen, Series, Whisker
from server.report.figures import Figure
from server.report.tables import Cell

NUMBERS = st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-6)


def whiskers(count: int) -> list[Whisker]:
    return [Whisker(label=f"site {n}", cell=Cell(value=n, low=n - 1, high=n + 1), main=True)
            for n in range(count)]  # fmt: skip


def test_a_marker_lies_on_the_axis_where_its_number_is() -> None:
    """A figure whose scale is off by a little is believed all the same."""
    drawn = str(charts.forest("a", "A", whiskers(11), x="years"))
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    axis = {text: float(x) for x, text in re.findall(r'<text x="([\d.]+)"[^>]*>([\d.]+)</text>',
                                                     drawn)}  # fmt: skip
    for text, x in axis.items():
        assert x == pytest.approx(dots[int(float(text))], abs=0.2)
    assert len(axis) > 2


def test_a_whisker_reaches_from_low_to_high() -> None:
    """And the diamond of all sites is as wide as its interval."""
    rows = [Whisker(label="a", cell=Cell(value=5, low=0, high=10)),
            Whisker(label="all", cell=Cell(value=5, low=0, high=10), over=True)]  # fmt: skip
    drawn = str(charts.forest("a", "A", rows, x="years"))
    [bar] = re.findall(r'd="M([\d.]+) [\d.]+L([\d.]+) [\d.]+" style="stroke:currentColor;fill:none"'
                       r' stroke-width="1.4"', drawn)  # fmt: skip
    [diamond] = re.findall(r'd="M([\d.]+) [\d.]+L[\d.]+ [\d.]+L([\d.]+) [^"]*Z"', drawn)
    assert bar == diamond


def test_rows_are_labelled_from_the_top_in_order() -> None:
    """The forest and the table beside it are read together."""
    drawn = str(charts.forest("a", "A", whiskers(3), x="years"))
    found = [(float(y), label) for y, label in re.findall(r'y="([\d.]+)"[^>]*>(site \d)<', drawn)]
    assert [label for _, label in sorted(found)] == ["site 0", "site 1", "site 2"]
    dots = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)]
    assert [y for y, _ in found] == [pytest.approx(y + 4, abs=0.1) for y in dots]


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.integers(2, 9))
def test_ticks_are_few_round_and_inside(values: list[float], most: int) -> None:
    """Whatever is measured, in whatever unit."""
    scale = svg.around(values, 0, 100)
    ticks = scale.ticks(most)
    assert 1 <= len(ticks) <= most + 1
    for tick in ticks:
        assert -0.01 <= scale(tick) <= 100.01
    assert all(0 <= scale(value) <= 100 for value in values)
    assert len(set(svg.tick_words(ticks))) == len(ticks) or max(map(abs, values)) < 1e-4


def test_two_thousand_sites_stay_below_half_a_megabyte() -> None:
    """A large consortium's page must still travel by mail."""
    assert len(charts.forest("a", "A", whiskers(2000), x="years")) < 500_000


@pytest.mark.parametrize("text", ['<script>"&', "苏黎世", "a" * 300])
def test_words_from_files_are_words(text: str) -> None:
    """In labels, axes, titles and descriptions alike; on paper, too."""
    pen = Pen(colour=0)
    cells = [[(0.5, text)]]
    for drawn in (
        charts.forest("a", text, [Whisker(label=text, cell=Cell(value=1.0))], x=text),
        charts.curves("a", text, [Series(name=text, points=((0, 1), (1, 2)), pen=pen)], x=text,
                      y=text),
        charts.learning("a", text, [Band(name=text, points=((5, Cell(value=1.0)),))], x=text,
                        y=text),
        charts.matrix("a", text, [text], [text], cells, y=text, x=text),
    ):  # fmt: skip
        root = ET.fromstring(svg.on_paper(drawn))
        assert root.findtext("{http://www.w3.org/2000/svg}title") == text
        assert "script" not in {one.tag.rpartition("}")[2] for one in root.iter()}


def test_nothing_to_draw_is_an_empty_figure_and_no_crash() -> None:
    """All values withheld, or one alone: a page is still written."""
    nothing = Cell(value=None)
    assert "</svg>" in charts.forest("a", "A", [Whisker(label="x", cell=nothing)], x="years")
    assert "</svg>" in charts.learning("a", "A", [Band(name="x", points=((5, nothing),))], x="k",
                                       y="AUC")  # fmt: skip
    assert "</svg>" in charts.curves("a", "A", [], x="round", y="loss")


def test_the_numbers_of_a_figure_are_written_in_full_and_never_as_a_formula() -> None:
    """A spreadsheet runs what begins with an equals sign, and a reader quotes every digit."""
    one = Figure(name="a b", title="A", drawn=svg.figure("a", "A", "A", (9, 9), []),
                 columns=("site", "value"), rows=(("=1+1", 0.1 + 0.2), ("x", None)))  # fmt: skip
    text = base64.b64decode(one.csv.partition("base64,")[2]).decode()
    assert text == f"site,value\n'=1+1,{0.1 + 0.2!r}\nx,\n"
    assert one.file == "a-b"
