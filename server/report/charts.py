"""Small SVG figures for the report: the same numbers give the same bytes, in light and in dark.

Colours are CSS variables of the page with a fallback, everything else takes the colour of the text.
A figure holds no address, no script and no font, and its ids are its own.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from server.report.comparisons import Comparison, Line
from server.report.tables import FEDERATED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by every kind of colour vision; black and yellow are left out
# because one of them vanishes on each background
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_DASHES: Final = ("", "6 2.5", "1.5 2", "6 2 1.5 2", "11 3")
_LONGEST_LABEL: Final = 30  # characters; a longer one would leave no room for the axis
_MOST_POINTS: Final = 300  # a figure stays below 60 kB however long the run
_INK: Final = "#010203"  # stands for the colour of the text until the figure is in the page
_FAINT: Final = "#010204"
_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # for measuring only; the page's own font is drawn
    "font.size": 9,
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "path.simplify": True,
}

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named line of (x, y) points."""

    name: str
    points: tuple[tuple[float, float], ...]
    pen: Pen


def curves(
    name: str, title: str, series: Sequence[Series], *, x: str, y: str, marked: Iterable[float] = ()
) -> Markup:
    """Lines over rounds, read out by their first and last value; `marked` rounds get a rule."""
    with _axes(name, 4.2, 2.5) as (figure, axes):
        for at in marked:
            axes.axvline(at, color=_FAINT, linewidth=0.7, linestyle=(0, (1, 2)))
        for line in series:
            _draw(axes, line)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.locator_params(axis="y", nbins=5)
        return _inline(figure, name, f"{title}. {_spoken(series)}")


def forest(name: str, comparison: Comparison, axis: str) -> Markup:
    """Value and interval of every model at one site; the dashed rule is the federated value."""
    lines = [line for line in comparison.lines if line.cell.value is not None]
    with _axes(name, 4.6, 0.55 + 0.23 * max(len(lines), 2)) as (figure, axes):
        if comparison.federated and comparison.federated.cell.value is not None:
            axes.axvline(
                comparison.federated.cell.value, color=_FAINT, linewidth=0.7, linestyle=(0, (3, 2))
            )
        for place, line in enumerate(lines):
            _whisker(axes, place, line)
        axes.set_yticks(range(len(lines)), [_short(line.title) for line in lines])
        axes.set_ylim(max(len(lines), 1) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(axis)
        return _inline(figure, name, f"{axis} by model: the numbers of the table beside it")


def legend(series: Sequence[Series]) -> list[tuple[str, Pen]]:
    """Each name once, with its pen, for a key that several figures share."""
    return list({line.name: line.pen for line in series}.items())


@contextmanager
def _axes(name: str, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of so many inches, drawn by no style but ours."""
    # imported here: it takes half a second, and `--help` draws nothing
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _whisker(axes: Axes, place: int, line: Line) -> None:
    colour = _sentinel(0) if line.model == FEDERATED else _INK
    cell = line.cell
    if cell.low is not None and cell.high is not None:
        axes.plot([cell.low, cell.high], [place, place], color=colour, linewidth=1.3)
    if cell.value is not None:
        axes.plot(
            [cell.value],
            [place],
            color=colour,
            marker="D" if line.is_made_here else "o",
            markersize=4,
            markerfacecolor="none" if line.is_made_here else colour,
        )


def _draw(axes: Axes, line: Series) -> None:
    points = _thinned([(x, y) for x, y in line.points if math.isfinite(y)])
    if not points:
        return
    dashes = [float(part) for part in line.pen.dashes.split()]
    axes.plot(
        *zip(*points, strict=True),
        color=_sentinel(line.pen.colour),
        linewidth=line.pen.width,
        linestyle=(0, tuple(part / line.pen.width for part in dashes)) if dashes else "-",
        marker="o" if len(points) == 1 else "",
        markersize=4,
    )


def _short(title: str) -> str:
    return title if len(title) <= _LONGEST_LABEL else f"{title[: _LONGEST_LABEL - 1]}…"


def _thinned(points: Sequence[tuple[float, float]]) -> Points:
    """At most some hundreds of points, first and last among them."""
    step = -(-len(points) // _MOST_POINTS) or 1
    return [*points[:-1:step], *points[-1:]]


def _sentinel(colour: int) -> str:
    return f"#0a0b{colour:02x}"


def _spoken(series: Sequence[Series]) -> str:
    parts = []
    for line in series:
        points = [(x, y) for x, y in line.points if math.isfinite(y)]
        if points:
            parts.append(f"{line.name}: from {points[0][1]:.3g} to {points[-1][1]:.3g}")
    return "; ".join(parts)


def _inline(figure: Figure, name: str, spoken: str) -> Markup:
    """The figure as an SVG element of an HTML page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # names of the XML world are addresses; HTML needs none of them
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them, and figures repeat them
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would rule the whole page
    text = text.replace("'DejaVu Sans'", "var(--sans, sans-serif)")
    text = _renamed(text, name)
    viewbox = re.search(r'viewBox="([^"]*)"', text)
    head = (
        f'<svg viewBox="{viewbox.group(1) if viewbox else ""}" role="img" '
        f'stroke-linejoin="round" aria-label="{escape(spoken)}">'
    )
    text = head + text[text.index(">") + 1 :]
    for found, put in _colours().items():
        text = text.replace(found, put)
    return Markup(text.strip())  # noqa: S704  matplotlib escapes text, `spoken` is escaped above


def _renamed(text: str, name: str) -> str:
    """Ids under the figure's own name: two figures in one page may not share any."""
    ids = re.findall(r'\bid="([^"]*)"', text)
    for old in sorted(set(ids), key=len, reverse=True):
        for before, after in ((f'id="{old}"', f'id="{name}-{old}"'), (f"#{old}", f"#{name}-{old}")):
            text = text.replace(before, after)
    return text


def _colours() -> Mapping[str, str]:
    pens = {
        _sentinel(number): f"var(--line-{number}, {colour})"
        for number, colour in enumerate(COLOURS)
    }
    return {**pens, _INK: "currentColor", _FAINT: "var(--muted, currentColor)"}
