"""What a consortium gains, in a few lines: together against alone, pretraining against none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from common.study import Study
from server.report.comparisons import MEAN_OF_SINGLES, Comparison, Line
from server.report.paired_tables import Pair, PairedTable
from server.report.tables import Cell, digits_of, of_metric, sentence, shown
from server.results import TOGETHER

_ALONE: Final = "single-"
_PRETRAINED: Final = "pretrained"
_OTHERS: Final = ("pooled-linear", "training-median")  # told beside, whoever is ahead


def gains(
    study: Study, compared: Sequence[Comparison], paired: Sequence[PairedTable], percent: str
) -> list[str]:
    """One line for the weightiest target out of site, one for all, one for each tuned task.

    Differences are turned so that they are the federated, or the pretrained, network minus its
    rival; intervals are of paired differences.
    """
    judged = judged_together(study, compared)
    found = [_alone(judged[0], percent), _verdicts(judged)] if judged else []
    found += [_tuned(table, percent) for table in paired if table.phase == "finetune"]
    return [line for line in found if line]


def judged_together(study: Study, compared: Sequence[Comparison]) -> list[Comparison]:
    """What all held-out sites together, or the only one, measured; the weightiest target first."""
    told = [one for one in compared if one.federated and one.federated.cell.value is not None]
    places = {one.site for one in told}
    wanted = TOGETHER if TOGETHER in places else next(iter(sorted(places)), "")
    here = [one for one in told if one.site == wanted and one.target in study.pretraining_targets]
    return sorted(here, key=lambda one: -study.targets[one.target].weight)


def _alone(one: Comparison, percent: str) -> str:
    """The federated network beside the sites' own ones, and beside what needs no network."""
    federated, lines = one.federated, {line.model: line for line in one.lines}
    if federated is None:
        return ""
    digits = digits_of(one.metric, *(line.cell.value for line in one.lines))
    alone = [line for line in one.rivals() if line.model.startswith(_ALONE)]
    parts = [f"together {sentence(federated.cell, digits)}"]
    mean = lines.get(MEAN_OF_SINGLES)
    if mean is not None and mean.cell.value is not None:
        parts.append(f"alone {shown(mean.cell.value, digits)} on average")
    parts += [
        f"{lines[model].title} {sentence(lines[model].cell, digits)}"
        for model in _OTHERS
        if model in lines and lines[model].cell.value is not None
    ]
    apart = "; ".join(
        f"{_name(line)} {turned(line.difference, digits)}" for line in alone if line.difference
    )
    less = f". Together minus alone: {apart}" if apart else ""
    return (
        f"{one.target} at {one.place}, {of_metric(one)} ({percent}, "
        f"{federated.participants} people): {', '.join(parts)}{less}."
    )


def _verdicts(judged: Sequence[Comparison]) -> str:
    """How often together and alone differ, over all targets."""
    rivals = [line for one in judged for line in one.rivals() if line.model.startswith(_ALONE)]
    if not rivals:
        return ""
    better, worse = (
        sum(line.verdict == verdict for line in rivals)
        for verdict in ("federated better", "federated worse")
    )
    return (
        f"Over {len(judged)} targets, together is better than a site alone in {better} of "
        f"{len(rivals)} comparisons, worse in {worse}, and in the others not distinguishable."
    )


def _tuned(table: PairedTable, percent: str) -> str:
    """How far pretrained ways lie from others, over all sites that tuned, or at the only one."""
    site = site_of(table)
    told = [pair for pair in table.lines
            if site in pair.cells and pair.cells[site].cell.value is not None]  # fmt: skip
    digits = digits_of(table.metric, *(pair.cells[site].cell.value for pair in told))
    parts = [part for pair in told if (part := _apart(pair, pair.cells[site].cell, digits))]
    if not parts:
        return ""
    people = max(pair.cells[site].n_participants for pair in told)
    where = "all sites" if site == TOGETHER else site
    listed = "; ".join(parts)
    return f"{table.task} at {where}, {of_metric(table)} ({percent}, {people} people): {listed}."


def site_of(table: PairedTable) -> str:
    """All sites that tuned, as one; or the first whose numbers were not withheld."""
    told = [
        site
        for site in table.sites
        if any(site in pair.cells and pair.cells[site].cell.value is not None
               for pair in table.lines)
    ]  # fmt: skip
    return TOGETHER if TOGETHER in told else (*told, *table.sites, "")[0]


def _apart(pair: Pair, cell: Cell, digits: int) -> str:
    """A pair as pretrained minus the other; nothing of pairs where both are, or none is."""
    if pair.own.startswith(_PRETRAINED) == pair.rival.startswith(_PRETRAINED):
        return ""
    if pair.own.startswith(_PRETRAINED):
        return f"{pair.title} {sentence(cell, digits, signed=True)}"
    turned_round = replace(pair, own=pair.rival, rival=pair.own)
    return f"{turned_round.title} {turned(cell, digits)}"


def _name(line: Line) -> str:
    return line.model.removeprefix(_ALONE)


def turned(cell: Cell, digits: int) -> str:
    """A difference the other way round, with its interval."""
    if cell.value is None or cell.low is None or cell.high is None:
        return "without an interval"
    low, high = shown(-cell.high, digits), shown(-cell.low, digits)
    return f"{shown(-cell.value, digits, signed=True)} ({low} to {high})"
