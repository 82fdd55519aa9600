"""The model card of a release: Markdown made of study, lineage and results, for whoever uses it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.explain import explain
from common.study import Study
from server.lineage import Lineage
from server.overlap import Overlaps
from server.report.comparisons import Comparison
from server.report.tables import METRIC_NAMES, Cell

_LIMITS = """\
- Figures hold for people like those of the held-out sites, scanned and prepared like them.
- Intervals are of people at the sites that judged; another hospital may lie outside them.
- It is no medical device, and was not tested as one. It must decide about nobody.
- What was learnt from few people can be found in weights; differential privacy would bound it.
- Overlap is seen between scans that were prepared to the same bits. A scan that was changed before,
  or one of another visit of a person, is another scan to it."""


def model_card(
    study: Study, lineage: Lineage, found: Sequence[Comparison], overlaps: Overlaps
) -> str:
    """The card's text.

    found: the federated model and its rivals at each held-out site, as results.csv holds them.
    """
    parts = [
        f"# {study.name}",
        "A network trained by several hospitals together, whose scans stayed where they are.",
        "## What it is",
        _list(explain(study).splitlines()),
        "## What went into it",
        _list(lineage.told()),
        (
            f"{len(lineage.contributors)} sites contributed, in {len(lineage.stages)} "
            f"{'study' if len(lineage.stages) == 1 else 'studies, each begun from the one before'}."
        ),
        "## How good it is",
        "At held-out sites, which gave nothing to it; in brackets the 95 % interval.",
        *(_table(each) for each in found),
        *(("No held-out site has judged it.",) if not found else ()),
        *(("## What to know of overlaps", _list(overlaps.findings)) if overlaps.findings else ()),
        "## Limits",
        _LIMITS,
        "## Licence",
        "FILL IN: under which licence the weights may be used, and whom to ask.",
        "## Checking it",
        "`callosum verify FOLDER` holds weights, study and results against the certificate.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(found: Comparison) -> str:
    metric = METRIC_NAMES.get(found.metric, found.metric)
    unit = f", {found.unit}" if found.unit and found.metric in ("mae", "rmse") else ""
    return "\n".join(_lines(found, f"{metric}{unit}"))


def _lines(found: Comparison, metric: str) -> Iterator[str]:
    yield f"### {found.target} at {found.place}"
    yield ""
    yield f"| model | {metric} | people | scans |"
    yield "|---|---|---|---|"
    for line in found.lines:
        yield f"| {line.title} | {_cell(line.cell)} | {line.participants:,} | {line.scans:,} |"


def _cell(cell: Cell) -> str:
    if cell.value is None:
        return "not defined" if cell.undefined else "withheld"
    interval = (
        f" ({cell.low:.3g} to {cell.high:.3g})"
        if cell.low is not None and cell.high is not None
        else ""
    )
    return f"{cell.value:.3g}{interval}"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
