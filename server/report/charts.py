"""What is drawn: curves, forests, learning curves and matrices, of the numbers that they are given.

The same numbers give the same bytes. No colour carries a meaning alone: lines have dashes and
markers of their own, cells hold their number, a diamond is a row over all sites.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from markupsafe import Markup

from server.report import svg
from server.report.svg import COLOURS, FAINT, INK, MARKERS, Point, Scale
from server.report.tables import Cell

_DASHES: Final = ("", "6 2.5", "1.5 2", "6 2 1.5 2", "11 3")
_LONGEST_LABEL: Final = 28  # characters; a longer one would leave no room for the axis
_MOST_POINTS: Final = 300  # a figure stays below 60 kB however long the run
_MOST_TEXT: Final = 60  # rows of a forest that have room for a line of text each
_WIDTH: Final = 420

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pen:
    """How one series is drawn: told apart by colour and by dashes."""

    colour: int
    dashes: str = ""
    width: float = 1.6

    @property
    def stroke(self) -> str:
        """The colour as CSS."""
        return f"var(--line-{self.colour}, {COLOURS[self.colour]})"


# every pair of colour and dashes, colours first: 30 series before any pair comes twice
PENS: Final = tuple(
    Pen(colour=colour, dashes=_DASHES[(dash + colour) % len(_DASHES)])
    for dash, colour in product(range(len(_DASHES)), range(len(COLOURS)))
)


_BLUE: Final = PENS[0].stroke


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named line of (x, y) points."""

    name: str
    points: tuple[tuple[float, float], ...]
    pen: Pen


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """A row of a forest: a value with its interval, or a heading where there is no cell.

    main: in colour. over: of all sites, a diamond as wide as its interval. open: made by this page.
    """

    label: str
    cell: Cell | None = None
    main: bool = False
    over: bool = False
    open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A named line of (x, value with interval)."""

    name: str
    points: tuple[tuple[float, Cell], ...]


def curves(
    name: str, title: str, series: Sequence[Series], *, x: str, y: str, marked: Iterable[float] = ()
) -> Markup:
    """Lines over rounds, read out by their first and last value; `marked` rounds get a rule."""
    lines = [(one, _thinned([(a, b) for a, b in one.points if math.isfinite(b)])) for one in series]
    known = [point for _, points in lines for point in points]
    across, up, axes = _grid(known, x, y, height=250, whole=True)
    parts = [
        svg.path([[(across(at), up.start), (across(at), up.end)]], FAINT, width=0.8, dashes="1 2")
        for at in marked
    ]
    for one, points in lines:
        placed = [(across(a), up(b)) for a, b in points]
        parts.append(svg.path([placed], one.pen.stroke, width=one.pen.width, dashes=one.pen.dashes))
        parts.append(svg.markers(placed if len(placed) == 1 else [], one.pen.stroke))
    return svg.figure(name, title, f"{title}. {_spoken(series)}", (_WIDTH, 250), [axes, *parts])


def forest(
    name: str, title: str, rows: Sequence[Whisker], *, x: str, rule: float | None = None
) -> Markup:
    """Values and intervals one below another; the dashed rule is what they are held against."""
    step, size = (19, svg.SIZE) if len(rows) <= _MOST_TEXT else (11, 8)
    labels = [short(row.label) for row in rows]
    left = max((svg.width_of(label, size) for label in labels), default=0) + 14
    cells = [row.cell for row in rows if row.cell is not None]
    ends = [end for cell in cells for end in (cell.low, cell.value, cell.high) if end is not None]
    across = svg.around([*ends, *([] if rule is None else [rule])], left, _WIDTH - 18)
    bottom = 8.0 + step * len(rows)
    ticks = across.ticks(5)
    parts = [
        svg.bottom_axis(across, bottom, x, list(zip(ticks, svg.tick_words(ticks), strict=True)))
    ]
    if rule is not None:
        line = [(across(rule), 4.0), (across(rule), bottom)]
        parts.append(svg.path([line], FAINT, width=0.8, dashes="3 2"))
    parts += [
        svg.words(left - 8, 8 + step * (place + 0.5) + size / 3, label, anchor="end", size=size,
                  bold=row.cell is None)
        for place, (label, row) in enumerate(zip(labels, rows, strict=True))
    ]  # fmt: skip
    placed = [(round(8 + step * (place + 0.5), 1), row) for place, row in enumerate(rows)]
    parts += _whiskers(placed, across)
    told = sum(cell.value is not None for cell in cells)
    spoken = f"{title}: {told} values with intervals, {x}"
    return svg.figure(name, title, spoken, (_WIDTH, bottom + 40), parts)


def learning(
    name: str, title: str, bands: Sequence[Band], *, x: str, y: str, rule: float | None = None
) -> Markup:
    """Values with intervals by how many were learnt from; lines lie a little apart to be seen."""
    counts = sorted({at for band in bands for at, _ in band.points})
    cells = [cell for band in bands for _, cell in band.points]
    ends = [end for cell in cells for end in (cell.low, cell.value, cell.high) if end is not None]
    corners = [(-0.5, end) for end in ends] + [(len(counts) - 0.5, ends[0])] if ends else []
    corners += [] if rule is None else [(0.0, rule)]
    named = [(float(place), f"{count:g}") for place, count in enumerate(counts)]
    across, up, axes = _grid(corners, x, y, height=300, ticks=named)
    parts = [axes]
    if rule is not None:
        line = [(across.start, up(rule)), (across.end, up(rule))]
        parts.append(svg.path([line], FAINT, width=0.8, dashes="3 2"))
    for number, band in enumerate(bands):
        shift = (number - (len(bands) - 1) / 2) * 0.5 / max(len(bands), 4)
        told = [(across(counts.index(at) + shift), cell) for at, cell in band.points]
        parts += _band(PENS[number % len(PENS)], MARKERS[number % len(MARKERS)], told, up)
    spoken = "; ".join(_ends(band) for band in bands if band.points)
    return svg.figure(name, title, f"{title}. {spoken}", (_WIDTH, 300), parts)


def matrix(
    name: str,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[tuple[float, str] | None]],
    *,
    y: str,
    x: str,
) -> Markup:
    """Words in their cells, on a ground the stronger the nearer their share is to 1."""
    words = (one[1] for found in cells for one in found if one is not None)
    width, height = max(58, *(svg.width_of(one) + 12 for one in words)), 24
    labels, heads = [short(one, 22) for one in rows], [short(one, 16) for one in columns]
    top = max(map(svg.width_of, heads), default=0) * 0.71 + 34
    left = max(map(svg.width_of, [*labels, y])) + 24
    parts = [svg.words(left - 8, top - 22, f"{x} \N{RIGHTWARDS ARROW}", anchor="end"),
             svg.words(left - 8, top - 6, f"{y} \N{DOWNWARDS ARROW}", anchor="end")]  # fmt: skip
    for over, head in enumerate(heads):
        parts.append(svg.words(left + width * (over + 0.5), top - 6, head, turned=-45))
    for down, (label, found) in enumerate(zip(labels, cells, strict=True)):
        middle = top + height * (down + 0.5) + 4
        parts.append(svg.words(left - 8, middle, label, anchor="end"))
        for over, one in enumerate(found):
            if one is not None:
                at = left + width * over
                ground = 0.05 + 0.4 * one[0]
                parts.append(svg.cell(at, top + height * down, width, height, _BLUE, ground))
                parts.append(svg.words(at + width / 2, middle, one[1], anchor="middle"))
    size = (max(left + width * (len(columns) + 1), _WIDTH), top + height * len(rows) + 8)
    spoken = f"{title}: {len(rows)} rows by {len(columns)} columns"
    return svg.figure(name, title, spoken, size, parts)


def legend(series: Sequence[Series]) -> list[tuple[str, Pen]]:
    """Each name once, with its pen, for a key that several figures share."""
    return list({line.name: line.pen for line in series}.items())


def short(title: str, most: int = _LONGEST_LABEL) -> str:
    """A label that leaves room for the axis."""
    return title if len(title) <= most else f"{title[: most - 1]}…"


def _grid(
    points: Points, x: str, y: str, *, height: float, whole: bool = False,
    ticks: Sequence[tuple[float, str]] = (),
) -> tuple[Scale, Scale, str]:  # fmt: skip
    """Scales for both directions, and their axes drawn."""
    up = svg.around((b for _, b in points), height - 40, 24)
    marks = up.ticks(5)
    texts = svg.tick_words(marks)
    left = max(map(svg.width_of, texts), default=0) + 14
    across = svg.around((a for a, _ in points), left, _WIDTH - 18, pad=0 if ticks else 0.02)
    named = list(ticks)
    if not named:
        wanted = across.ticks(7, whole=whole)
        named = list(zip(wanted, svg.tick_words(wanted), strict=True))
    below = svg.bottom_axis(across, height - 40, x, named)
    beside = svg.left_axis(up, left, y, list(zip(marks, texts, strict=True)))
    return across, up, below + beside


def _whiskers(placed: Sequence[tuple[float, Whisker]], across: Scale) -> list[str]:
    """All rows of a kind as one path and one group of markers: a hundred sites stay small."""
    parts = []
    for main, is_open in product((False, True), repeat=2):
        colour = _BLUE if main else INK
        of = [(y, row.cell) for y, row in placed
              if row.cell and (row.main, row.open, row.over) == (main, is_open, False)]  # fmt: skip
        bars = [[(across(cell.low), y), (across(cell.high), y)] for y, cell in of
                if cell.low is not None and cell.high is not None]  # fmt: skip
        parts.append(svg.path(bars, colour, width=1.4))
        dots = [(across(cell.value), y) for y, cell in of if cell.value is not None]
        parts.append(svg.markers(dots, colour, is_open=is_open))
    for y, row in placed:
        if row.over and row.cell is not None and row.cell.value is not None:
            parts.append(_diamond(row.cell, row.cell.value, y, across, _BLUE if row.main else INK))
    return parts


def _diamond(cell: Cell, value: float, y: float, across: Scale, colour: str) -> str:
    """As wide as its interval; where there is none, a marker."""
    if cell.low is None or cell.high is None:
        return svg.markers([(across(value), y)], colour, "diamond")
    corners = [(across(cell.low), y), (across(value), y - 5), (across(cell.high), y),
               (across(value), y + 5)]  # fmt: skip
    return svg.path([corners], colour, fill=colour)


def _band(pen: Pen, shape: str, told: Sequence[tuple[float, Cell]], up: Scale) -> list[str]:
    bars: list[list[Point]] = [[(x, up(cell.low)), (x, up(cell.high))] for x, cell in told
                               if cell.low is not None and cell.high is not None]  # fmt: skip
    line = [(x, up(cell.value)) for x, cell in told if cell.value is not None]
    return [
        svg.path(bars, pen.stroke, width=1.1),
        svg.path([line], pen.stroke, width=pen.width, dashes=pen.dashes),
        svg.markers(line, pen.stroke, shape),
    ]


def _ends(band: Band) -> str:
    first, last = (band.points[place][1].value for place in (0, -1))
    if first is None or last is None:
        return band.name
    return f"{band.name}: from {first:.3g} to {last:.3g}"


def _thinned(points: Sequence[tuple[float, float]]) -> Points:
    """At most some hundreds of points, first and last among them."""
    step = -(-len(points) // _MOST_POINTS) or 1
    return [*points[:-1:step], *points[-1:]]


def _spoken(series: Sequence[Series]) -> str:
    parts = []
    for line in series:
        points = [(x, y) for x, y in line.points if math.isfinite(y)]
        if points:
            parts.append(f"{line.name}: from {points[0][1]:.3g} to {points[-1][1]:.3g}")
    return "; ".join(parts)
