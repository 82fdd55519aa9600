"""What protocols found: medians by way and size, differences with their p-values, and in words.

Two p-values stand beside each other. The paper's takes repeats for independent and is adjusted over
sizes (Holm); a verdict rests on the one that knows that draws overlap, adjusted for the whole page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from common import metrics
from common.printable import printable
from common.protocol.orders import Measurement
from common.schemes import Protocol
from common.sections import FineTuning, Target
from common.study import Study
from server.report.tables import (
    METRIC_NAMES,
    Cell,
    cell_of,
    digits_of,
    p_shown,
    sentence,
    shown,
)
from server.report.verdicts import LEVEL, adjusted, holm
from server.results import TOGETHER

LINEAR: Final = "linear"
TRANSFER: Final = "pretrained-full"
SCRATCH: Final = "scratch-full"
# Leonardsen et al. (2025), patients and controls: who is ahead of whom, and at how many images
_LINEAR_AHEAD: Final = 100
_TRANSFER_AHEAD: Final = 300
Place = tuple[str, int, str]  # way, size, what is told of it


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolTable:
    """One protocol at one site, or over all of them."""

    protocol: Protocol
    task: FineTuning
    target: Target
    site: str
    told: Mapping[Place, Measurement]
    adjusted: Mapping[Measurement, float]  # p-values of the whole page

    @property
    def metric(self) -> str:
        """By which ways are compared."""
        return metrics.primary(self.target)

    @property
    def ways(self) -> tuple[str, ...]:
        """As rivals are named in metrics."""
        return tuple(way.replace("/", "-") for way in self.task.methods)

    def worded(self, way: str) -> str:
        """`pretrained full` of `pretrained-full`."""
        return {one.replace("/", "-"): one.replace("/", " ") for one in self.task.methods}[way]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each way with every one before it."""
        return [(one, other) for n, one in enumerate(self.ways) for other in self.ways[:n]]

    def middle(self, way: str, size: int) -> Cell | None:
        """The median of repeats, in the interval of their mean; over several sites, the mean."""
        mean = self.told.get((way, size, self.metric + metrics.OVER_DRAWS))
        median = self.told.get((way, size, self.metric + metrics.MEDIAN))
        first = mean if self.site == TOGETHER else median
        if first is None:
            return None
        cell = cell_of(first)
        return cell if mean is None else Cell(value=cell.value, low=mean.ci_low, high=mean.ci_high)

    def apart(self, pair: tuple[str, str], size: int) -> Measurement | None:
        """The mean difference of two ways, repeat by repeat."""
        return self.told.get((pair[0], size, f"{self.metric}_minus_{pair[1]}"))

    def flips(self, pair: tuple[str, str]) -> dict[int, float]:
        """p-values of repeats' signs by size, adjusted over sizes."""
        name = f"{self.metric}_minus_{pair[1]}{metrics.FLIPPED}"
        found = {size: self.told.get((pair[0], size, name)) for size in self.protocol.counts}
        known = {
            size: row.p for size, row in found.items() if row is not None and row.p is not None
        }
        return dict(zip(known, holm(list(known.values())), strict=True))

    @property
    def title(self) -> str:
        """What the table shows."""
        metric = METRIC_NAMES.get(self.metric, self.metric)
        unit = f" in {self.target.unit}" if self.target.unit and self.metric == "mae" else ""
        what = "mean" if self.site == TOGETHER else "median"
        dealt = ", labels dealt out anew" if self.protocol.shuffled else ""
        held_out = self.protocol.at == "heldout"
        where = "all sites" if self.site == TOGETHER else self.site
        where += (" held out" if self.site == TOGETHER else ", held out") if held_out else ""
        return (
            f"protocol {self.protocol.name} at {where}{dealt}: {what} {metric}{unit} of "
            f"{self.protocol.total} repeats (interval of the mean), learnt {self.protocol.told}"
        )

    @property
    def lines(self) -> list[list[str]]:
        """A row for each way, a cell for each size."""
        found = [[self.middle(way, size) for size in self.protocol.counts] for way in self.ways]
        digits = digits_of(
            self.metric, *(c.value for cells in found for c in cells if c is not None)
        )
        return [
            [
                self.worded(way),
                *(sentence(c, digits) if c is not None else "no result" for c in cells),
            ]
            for way, cells in zip(self.ways, found, strict=True)
        ]

    @property
    def differences(self) -> list[list[str]]:
        """A row for each pair of ways: difference, interval, p of signs as adjusted over sizes."""
        return [
            [f"{self.worded(pair[0])} minus {self.worded(pair[1])}", *self._of_pair(pair)]
            for pair in self.pairs
            if any(self.apart(pair, size) is not None for size in self.protocol.counts)
        ]

    def _of_pair(self, pair: tuple[str, str]) -> Iterator[str]:
        flips = self.flips(pair)
        for size in self.protocol.counts:
            row = self.apart(pair, size)
            if row is None:
                yield "no result"
                continue
            digits = digits_of(self.metric, row.value)
            p = f"; p {p_shown(flips[size])}" if size in flips else ""
            yield sentence(cell_of(row), digits, signed=True) + p


def protocol_tables(study: Study, rows: Iterable[Measurement]) -> list[ProtocolTable]:
    """A table for each protocol and site that answered; all sites together stand last."""
    found: dict[tuple[str, str], dict[Place, Measurement]] = {}
    every = list(rows)
    family = adjusted(every)
    for row in every:
        if row.phase == "protocol" and metrics.is_of_all_draws(row.metric):
            way = "-".join(part for part in (row.init, row.method) if part)
            found.setdefault((row.task, row.site), {})[way, row.k, row.metric] = row
    sites = {"train": study.sites.train, "heldout": study.sites.heldout}
    return [
        ProtocolTable(
            protocol=protocol,
            task=study.task_of(protocol),
            target=study.targets[study.task_of(protocol).target],
            site=site,
            told=found[protocol.name, site],
            adjusted=family,
        )
        for protocol in study.protocols
        for site in (*sites[protocol.at], TOGETHER)
        if (protocol.name, site) in found
    ]


def sentences(table: ProtocolTable) -> list[str]:
    """What a reader should know of a table, and how it differs from the paper's."""
    if table.protocol.shuffled:
        return [*_lacking(table), *_chance(table)]
    return [*_lacking(table), *_few_shot(table), *_verdicts(table), *_shape(table)]


def _lacking(table: ProtocolTable) -> Iterator[str]:
    """Repeats that say nothing."""
    for size in table.protocol.counts:
        rows = [table.told.get((way, size, metrics.REPEATS)) for way in table.ways]
        known = [int(row.value) for row in rows if row is not None and row.value is not None]
        if known and min(known) < table.protocol.total:
            yield (
                f"At {size or 'all'} {min(known)} of {table.protocol.total} repeats say anything; "
                "in the others a part held one class alone, or a network diverged."
            )


def _few_shot(table: ProtocolTable) -> Iterator[str]:
    """What figures of a held-out site's own people are not."""
    if table.protocol.at == "heldout":
        yield (
            "The judging site learnt from some of its own people here and told of its others; what "
            "the models are worth to it as they come stands under Out of site."
        )


def _verdicts(table: ProtocolTable) -> Iterator[str]:
    """Which pairs are told apart, and which the paper's test alone would."""
    ours: list[str] = []
    theirs: list[str] = []
    judged = 0
    for pair in table.pairs:
        flips = table.flips(pair)
        for size in table.protocol.counts:
            row = table.apart(pair, size)
            if row is None or row.value is None:
                continue
            judged += row in table.adjusted
            name = f"{_ahead(table, pair, row.value)} at {size}"
            if table.adjusted.get(row, 1.0) < LEVEL:
                ours.append(name)
            elif flips.get(size, 1.0) < LEVEL:
                theirs.append(name)
    if judged:
        told = "; ".join(ours) if ours else "none"
        yield f"Told apart of {judged} comparisons, adjusted for the whole page: {told}."
    elif ours or theirs:
        yield "Too few people judge for a verdict on any two ways."
    if theirs:
        yield (
            "By signs of repeats alone, adjusted over sizes, also: "
            + "; ".join(theirs)
            + ". Draws "
            "overlap, so that this test finds differences of these people, not of people like them."
        )


def _ahead(table: ProtocolTable, pair: tuple[str, str], value: float) -> str:
    better = (value > 0) != (table.metric == "mae")
    first, second = pair if better else pair[::-1]
    return f"{table.worded(first)} ahead of {table.worded(second)}"


def _shape(table: ProtocolTable) -> Iterator[str]:
    """Where the order of the three ways is another than Leonardsen et al. (2025) found."""
    asked = table.metric == "auc" and table.protocol.scheme == "resampled"
    if not asked or not {LINEAR, TRANSFER, SCRATCH} <= set(table.ways):
        return
    same: list[str] = []
    other: list[str] = []
    for size in table.protocol.counts:
        for first, second in _expected(size):
            found = [table.middle(way, size) for way in (first, second)]
            values = [cell.value for cell in found if cell is not None and cell.value is not None]
            if len(values) < 2:
                continue
            told = f"{table.worded(first)} over {table.worded(second)} at {size}"
            numbers = f"{shown(values[0], 3)} against {shown(values[1], 3)}"
            (same if values[0] > values[1] else other).append(f"{told} ({numbers})")
    where = "Leonardsen et al. (2025), patients against controls"
    if same:
        yield f"As in {where}: {'; '.join(same)}."
    if other:
        yield f"Other than in {where}, it is not: {'; '.join(other)}."


def _expected(size: int) -> Iterator[tuple[str, str]]:
    """Who is ahead of whom in the paper, of so many images."""
    yield TRANSFER, SCRATCH
    if size <= _LINEAR_AHEAD:
        yield LINEAR, TRANSFER
    if size >= _TRANSFER_AHEAD:
        yield TRANSFER, LINEAR


def _chance(table: ProtocolTable) -> Iterator[str]:
    """Whether every way is at chance once labels are dealt out anew."""
    if table.target.kind == "regression":
        yield "Labels were dealt out anew: an error has no chance level to be held against."
        return
    chance = 1 / max(2, len(table.target.classes))
    cells = {(w, s): table.middle(w, s) for w in table.ways for s in table.protocol.counts}
    known = {
        place: (cell.low, cell.high)
        for place, cell in cells.items()
        if cell is not None and cell.low is not None and cell.high is not None
    }
    outside = [
        f"{table.worded(way)} at {size}"
        for (way, size), (low, high) in known.items()
        if not low <= chance <= high
    ]
    yield (
        f"Labels were dealt out anew: {len(known) - len(outside)} of {len(known)} intervals cover "
        f"chance ({chance:.2f})" + (f"; not {', '.join(outside)}." if outside else ".")
    )


def html(tables: Sequence[ProtocolTable]) -> str:
    """A small section of the page; nothing where no protocol was asked for."""
    if not tables:
        return ""
    parts = ['<section aria-labelledby="protocols">', '<h2 id="protocols">Protocols</h2>']
    for table in tables:
        parts.append(f"<h3>{_safe(table.title)}</h3>")
        label = f"{table.protocol.name} at {table.site}"
        for name, rows in (("ways", table.lines), ("differences", table.differences)):
            if rows:
                parts.append(_table(f"{label}, {name}", table.protocol.counts, rows))
        parts += [f"<p>{_safe(text)}</p>" for text in sentences(table)]
    return "\n".join([*parts, "</section>"])


def _table(label: str, sizes: Sequence[int], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{size or "all"}</th>' for size in sizes)
    body = "".join(
        f'<tr><th scope="row">{_safe(row[0])}</th>'
        + "".join(f"<td>{_safe(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_safe(label)}">'
        f'<table data-protocol="{_safe(label)}"><caption><span>{_safe(label)}, by how many were '
        f"learnt from</span></caption>"
        f'<thead><tr><th scope="col">learnt from</th>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _safe(text: str) -> str:
    return escape(printable(text))
