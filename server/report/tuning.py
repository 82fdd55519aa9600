"""Fine-tuning as the page shows it: values by site and way, how far ways lie apart, curves.

Of very many sites the differences of all together stand there, and at how many sites each was
better; every difference at every site stands in results.csv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from server.report.figures import Figure
from server.report.paired_tables import Pair, PairedTable
from server.report.tables import Cell, digits_of, of_metric, sentence
from server.report.task_tables import TaskCell, TaskTable
from server.results import TOGETHER

_MOST_SITES: Final = 24  # that have a column of differences each


def tasks(
    tables: Sequence[TaskTable],
    paired: Sequence[PairedTable],
    curves: Mapping[str, Sequence[Figure]],
) -> list[dict[str, Any]]:
    """What the page shows of each task."""
    return [_task(table, paired, curves) for table in tables]


def _task(
    table: TaskTable, paired: Sequence[PairedTable], curves: Mapping[str, Sequence[Figure]]
) -> dict[str, Any]:
    def cell(site: str, method: str) -> tuple[Cell, TaskCell] | None:
        found = table.cells.get((site, method))
        return (found.cell, found) if found else None

    own = (table.phase, table.task)
    digits = digits_of(table.metric, *(row.cell.value for row in table.cells.values()))
    pairs = next((one for one in paired if (one.phase, one.task) == own), None)
    at_once = len(table.sites) > _MOST_SITES
    return {
        "table": table,
        "metric": of_metric(table),
        "digits": digits,
        "curves": curves.get(table.task, ()) if table.phase == "finetune" else (),
        "lines": [(site, [cell(site, method) for method in table.methods]) for site in table.sites],
        "briefly": _briefly(table, digits) if at_once else None,
        "paired": _paired(pairs, at_once=at_once) if pairs else None,
    }


def _briefly(table: TaskTable, digits: int) -> list[tuple[str, list[str]]]:
    """The values of very many sites, in as few words as there can be."""

    def told(site: str, method: str) -> str:
        found = table.cells.get((site, method))
        if found is None:
            return "no result"
        people = f"; n {found.n_participants}" if found.cell.value is not None else ""
        return sentence(found.cell, digits) + people

    return [(site, [told(site, method) for method in table.methods]) for site in table.sites]


def _paired(paired: PairedTable, *, at_once: bool) -> dict[str, Any]:
    sites = tuple(site for site in paired.sites if not at_once or site.startswith(TOGETHER))
    cells = [pair.cells[site].cell.value for pair in paired.lines for site in pair.cells]
    return {
        "sites": sites,
        "digits": digits_of(paired.metric, *cells),
        "counts": [_counts(paired, pair) for pair in paired.lines] if at_once else None,
        "lines": [
            (
                pair.title,
                {
                    site: (pair.cells[site].cell, verdict(paired, pair, site))
                    for site in sites
                    if site in pair.cells
                },
            )
            for pair in paired.lines
        ],
    }


def verdict(paired: PairedTable, pair: Pair, site: str) -> str:
    """Which way is better there, that it is undecided, or that too few people say."""
    cell = pair.cells[site].cell
    if cell.value is None:
        return ""
    winner = paired.winner(pair, site)
    undecided = "undecided" if cell.adjusted is not None else "too few to say"
    return f"{winner} is better" if winner else undecided


def _counts(paired: PairedTable, pair: Pair) -> str:
    told = [verdict(paired, pair, site) for site in pair.cells if not site.startswith(TOGETHER)]
    counted = {word: told.count(word) for word in dict.fromkeys(sorted(told)) if word}
    return ", ".join(f"{word}: {n}" for word, n in counted.items())
