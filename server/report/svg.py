"""SVG by hand: scales, ticks, lines, markers and words, for a page and as a file of its own.

matplotlib took 0.2 to 0.4 s and 15 kB a figure, and a study of many targets has dozens; this takes
a millisecond and a few kB. Colours are CSS variables of the page with a fallback, everything else
takes the colour of the text. A figure holds no address, no script and no font.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

from markupsafe import Markup

# Okabe and Ito's colours, told apart by every kind of colour vision; black and yellow are left out
# because one of them vanishes on each background
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
INK: Final = "currentColor"
FAINT: Final = "var(--muted, currentColor)"
SIZE: Final = 12  # of words; all measures are CSS pixels
MARKERS: Final = ("circle", "square", "triangle", "diamond", "wedge")
_PAPER_INK: Final = "#1b1f24"
_PAPER_FAINT: Final = "#59636e"
_STEPS: Final = (1, 2, 2.5, 5, 10)

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From numbers between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int, *, whole: bool = False) -> list[float]:
        """Round numbers within the scale, no more than `most`.

        >>> Scale(low=4.2, high=17.9, start=0, end=100).ticks(5)
        [5.0, 10.0, 15.0]
        """
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(one * power for one in _STEPS if one * power >= rough * (1 - 1e-9))
        step = max(math.ceil(step), 1) if whole else step
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def around(values: Iterable[float], start: float, end: float, *, pad: float = 0.04) -> Scale:
    """A scale that holds all finite values, and some room beside them."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    room = pad * (high - low)
    return Scale(low=low - room, high=high + room, start=start, end=end)


def tick_words(ticks: Sequence[float]) -> list[str]:
    r"""Ticks with as many digits as the finest needs.

    >>> tick_words([-0.5, 0.0, 0.25])
    ['\u22120.50', '0.00', '0.25']
    """
    digits = next(
        (n for n in range(9) if all(math.isclose(t, round(t, n), abs_tol=1e-9) for t in ticks)), 9
    )
    return [f"{tick:.{digits}f}".replace("-", "\N{MINUS SIGN}") for tick in ticks]


def width_of(words: str, size: float = SIZE) -> float:
    """About how wide a line of text is; no two machines have the same letters."""
    wide = sum(1.0 if unicodedata.east_asian_width(one) in "WF" else 0.56 for one in words)
    return wide * size


def path(
    points: Sequence[Sequence[Point]],
    colour: str,
    *,
    width: float = 1.0,
    dashes: str = "",
    fill: str = "none",
) -> str:
    """Lines through points, each list of them on its own; closed where they are filled."""
    ends = "Z" if fill != "none" else ""
    drawn = "".join(
        "M" + "L".join(f"{x:g} {y:g}" for x, y in line) + ends for line in points if line
    )
    if not drawn:
        return ""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<path d="{drawn}" style="stroke:{colour};fill:{fill}" stroke-width="{width:g}"{dashed}/>'
    )


def markers(
    points: Iterable[Point], colour: str, shape: str = "circle", *, is_open: bool = False
) -> str:
    """The same small shape at each point."""
    drawn = "".join(_marker(x, y, shape) for x, y in points)
    fill = "none" if is_open else colour
    return f'<g style="stroke:{colour};fill:{fill}">{drawn}</g>' if drawn else ""


def _marker(x: float, y: float, shape: str) -> str:
    if shape == "circle":
        return f'<circle cx="{x:g}" cy="{y:g}" r="3"/>'
    corners: dict[str, tuple[Point, ...]] = {
        "square": ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        "triangle": ((0, -4), (4, 3), (-4, 3)),
        "diamond": ((0, -4), (4, 0), (0, 4), (-4, 0)),
        "wedge": ((0, 4), (4, -3), (-4, -3)),
    }
    drawn = "L".join(f"{x + dx:g} {y + dy:g}" for dx, dy in corners[shape])
    return f'<path d="M{drawn}Z"/>'


def cell(x: float, y: float, width: float, height: float, colour: str, strength: float) -> str:
    """A rectangle of a colour, so strong."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
        f'style="fill:{colour}" fill-opacity="{strength:.2f}"/>'
    )


def words(
    x: float,
    y: float,
    text: str,
    *,
    anchor: Literal["start", "middle", "end"] = "start",
    bold: bool = False,
    size: float = SIZE,
    turned: int = 0,
) -> str:
    """A line of text whose base begins, lies around or ends at a point."""
    more = f' text-anchor="{anchor}"' if anchor != "start" else ""
    more += ' font-weight="600"' if bold else ""
    more += f' font-size="{size:g}"' if size != SIZE else ""
    more += f' transform="rotate({turned} {x:g} {y:g})"' if turned else ""
    return f'<text x="{x:g}" y="{y:g}"{more}>{escape(text)}</text>'


def bottom_axis(scale: Scale, y: float, label: str, ticks: Sequence[tuple[float, str]]) -> str:
    """The line below a figure, its ticks and what they are."""
    marks = [[(scale.start, y), (scale.end, y)]]
    marks += [[(scale(at), y), (scale(at), y + 4)] for at, _ in ticks]
    parts = [path(marks, INK, width=0.7)]
    parts += [words(scale(at), y + 16, text, anchor="middle") for at, text in ticks]
    parts.append(words((scale.start + scale.end) / 2, y + 33, label, anchor="middle"))
    return "".join(parts)


def left_axis(scale: Scale, x: float, label: str, ticks: Sequence[tuple[float, str]]) -> str:
    """The line left of a figure and its ticks; what they are stands above, where it can be read."""
    marks = [[(x, scale.start), (x, scale.end)]]
    marks += [[(x, scale(at)), (x - 4, scale(at))] for at, _ in ticks]
    parts = [path(marks, INK, width=0.7)]
    parts += [words(x - 7, scale(at) + 4, text, anchor="end") for at, text in ticks]
    parts.append(words(4, scale.end - 8, label))
    return "".join(parts)


def figure(
    name: str, title: str, spoken: str, size: tuple[float, float], parts: Iterable[str]
) -> Markup:
    """An SVG element of an HTML page, named and described for screen readers."""
    head = (
        f'<svg viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" font-size="{SIZE}" '
        'font-family="var(--sans, sans-serif)" style="fill:currentColor" stroke-linejoin="round" '
        f'aria-labelledby="{name}-title" aria-describedby="{name}-description">\n'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(spoken)}</desc>\n'
    )
    body = "\n".join(part for part in parts if part)
    return Markup(f"{head}{body}\n</svg>")  # noqa: S704  every text in it is escaped where it is put


def on_paper(drawn: str) -> str:
    """The same figure as an SVG file, with the colours and measures of a light page."""
    text = re.sub(r"var\(--line-\d, (#[0-9a-f]{6})\)", r"\1", drawn)
    text = text.replace("var(--muted, currentColor)", _PAPER_FAINT)
    text = text.replace("currentColor", _PAPER_INK).replace("var(--sans, sans-serif)", "sans-serif")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    measures = f' width="{size.group(1)}" height="{size.group(2)}"' if size else ""
    names = f'xmlns="http://www.w3.org/2000/svg" version="1.1"{measures}'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text.replace("<svg", f"<svg {names}", 1)}\n'
