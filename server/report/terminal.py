"""The headline tables as plain text, 100 columns wide, for the end of a command."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.printable import printable
from server.report.comparisons import Comparison, Line, comparisons
from server.report.gains import gains
from server.report.paired_tables import PairedTable, paired_tables
from server.report.protocols import ProtocolTable, protocol_tables, sentences
from server.report.recommendation import choices, in_short
from server.report.tables import digits_of, of_metric, p_shown, read_results, sentence
from server.report.task_tables import TaskTable, task_tables
from server.run import Run

if TYPE_CHECKING:
    from common.catalogue_listing import Entry

_WIDTH: Final = 100


def format_tables(run: Run) -> str:
    """What is gained, the out-of-site comparison, the fine-tuning tables.

    Heads on rival models are left out.
    """
    rows = read_results(run)
    percent = f"{100 * run.study.evaluation.confidence:g} %"
    compared, paired = comparisons(run.study, rows), paired_tables(run.study, rows)
    told = gains(run.study, compared, paired, percent)
    if method := in_short(choices(run.study, compared, paired)):
        told.append(f"Which method to use: {method}")
    tables = [_comparison(found, percent) for found in compared]
    tables += [_task(table, percent) for table in task_tables(run.study, rows) if table.cells]
    tables += [_paired(table, percent) for table in paired]
    protocols = protocol_tables(run.study, rows)
    tables += [table for one in protocols for table in _protocol(one)]
    missing = [] if compared else ["out of site: no held-out site has judged this run"]
    missing += [
        f"fine-tuning {table.task}: no site has reported a result"
        for table in task_tables(run.study, rows)
        if not table.cells
    ]
    told += [f"{one.protocol.name} at {one.site}: {text}" for one in protocols
             for text in sentences(one)]  # fmt: skip
    lines = [fill(printable(line), _WIDTH) for line in told]
    return "\n\n".join([*lines, *(_plain(table) for table in tables), *map(printable, missing)])


def format_catalogue(entries: Iterable[Entry]) -> list[Table]:
    """Backbones, objectives, and what every name stands for."""
    found = list(entries)
    backbones = [
        (one.name, _count(one.parameters), _count(one.small), "x".join(map(str, one.shape)),
         ", ".join(one.layouts), one.private, ", ".join(one.methods))
        for one in found if one.sort == "backbone"
    ]  # fmt: skip
    objectives = [
        (one.name, ", ".join(one.layouts), one.private, ", ".join(one.refuses))
        for one in found
        if one.sort == "objective"
    ]
    first = ("backbone", "parameters", "small", "sample", "takes", "private", "more methods")
    second = ("objective", "learns from", "private", "not with")
    return [
        table_in_text("", first, backbones),
        table_in_text("", second, objectives),
        table_in_text("", ("", "name", "what"), [(one.sort, one.name, one.what) for one in found]),
    ]


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def table_in_text(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], section: int = 0
) -> Table:
    """A table whose cells are what they are: no markup, no escape codes.

    `section` is how many rows stand above a line.
    """
    table = Table(title=_shown(title) if title else None)
    for column in columns:
        table.add_column(_shown(column))
    for number, row in enumerate(rows, start=1):
        table.add_row(*map(_shown, row), end_section=number == section)
    return table


def _shown(text: str) -> Text:
    return Text(printable(text))


def _comparison(comparison: Comparison, percent: str) -> Table:
    table = _table(
        f"{comparison.target} out of site, at {comparison.place}: {of_metric(comparison)}"
    )
    table.add_column("model", overflow="fold")
    table.add_column(percent, no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("minus federated", no_wrap=True)
    table.add_column("", no_wrap=True)
    digits = digits_of(comparison.metric, *(line.cell.value for line in comparison.lines))
    for line in _headline(comparison.lines):
        numbers = [sentence(line.cell, digits), "", "", ""]
        if line.cell.value is not None:
            apart = sentence(line.difference, digits, signed=True) if line.difference else ""
            verdict = "" if line.is_made_here else _verdict(line)
            numbers[1:] = [str(line.participants), apart, verdict]
        table.add_row(_shown(line.title), *map(_shown, numbers))
    return table


def _task(tasks: TaskTable, percent: str) -> Table:
    what = "fine-tuning" if tasks.phase == "finetune" else "tuned models judged anew,"
    note = "; median of repeats (lowest to highest)" if tasks.repeated else f", {percent}"
    note += "; mean over draws" if tasks.averaged else ""
    table = _table(f"{what} {tasks.task}: {of_metric(tasks)} on test participants{note}")
    table.add_column("site", overflow="fold")
    for method in tasks.methods:
        table.add_column(_shown(method), overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    digits = digits_of(tasks.metric, *(row.cell.value for row in tasks.cells.values()))
    for site in tasks.sites:
        rows = [tasks.cells.get((site, method)) for method in tasks.methods]
        texts = [sentence(row.cell, digits) if row else "no result" for row in rows]
        people = {row.n_participants for row in rows if row and row.cell.value is not None}
        table.add_row(*map(_shown, (site, *texts)), ", ".join(str(n) for n in sorted(people)))
    return table


def _paired(paired: PairedTable, percent: str) -> Table:
    """One row a pair of methods; all sites together stand last."""
    what = "fine-tuning" if paired.phase == "finetune" else "tuned models judged anew,"
    table = _table(
        f"{what} {paired.task}: differences in {of_metric(paired)}, paired by test participant, "
        f"{percent}"
    )
    table.add_column("", overflow="fold")
    for site in paired.sites:
        table.add_column(_shown(site), overflow="fold")
    cells = [cell.cell.value for pair in paired.lines for cell in pair.cells.values()]
    digits = digits_of(paired.metric, *cells)
    for pair in paired.lines:
        texts = [
            sentence(pair.cells[site].cell, digits, signed=True)
            if site in pair.cells
            else "no result"
            for site in paired.sites
        ]
        table.add_row(*map(_shown, (pair.title, *texts)))
    return table


def _protocol(one: ProtocolTable) -> Iterator[Table]:
    """Ways by size, then their differences."""
    titles = (one.title, "their differences, p of repeats' signs as adjusted over sizes")
    for title, rows in zip(titles, (one.lines, one.differences), strict=True):
        table = _table(title)
        table.add_column("", overflow="fold")
        for size in one.protocol.counts:
            table.add_column(str(size or "all"), overflow="fold")
        for row in rows:
            table.add_row(*map(_shown, row))
        if rows:
            yield table


def _verdict(line: Line) -> str:
    adjusted = line.difference.adjusted if line.difference else None
    return line.verdict + (f", p {p_shown(adjusted)}" if adjusted is not None else "")


def _headline(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if not line.model.startswith("single-") or "+" not in line.model]


def _table(title: str) -> Table:
    return Table(
        title=_shown(title),
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )


def _plain(table: Table) -> str:
    stream = io.StringIO()
    Console(
        file=stream, width=_WIDTH, markup=False, highlight=False, emoji=False, color_system=None
    ).print(table)
    # rich pads every line to the full width
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
