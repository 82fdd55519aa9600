"""The page's first words: what the consortium gained, over what, and which method to use.

Each sentence is about one paired difference, with its interval; differences are turned so that
they are together minus alone, together minus the simple rival, pretrained minus scratch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from common import metrics
from common.study import Study
from server.report.comparisons import MEAN_OF_SINGLES, Comparison, Line
from server.report.gains import judged_together, site_of, turned
from server.report.paired_tables import Pair, PairedTable
from server.report.tables import Cell, digits_of, of_metric, p_shown, sentence, shown
from server.results import TOGETHER

_DECIDED: Final = {
    True: "Starting from the shared network is better than {}.",
    False: "Starting from the shared network is worse than {}.",
}
_OPEN: Final = {
    True: "Too few people were tested to say whether starting from the shared network is better "
    "than {}.",
    False: "Whether starting from the shared network is better than {} is undecided.",
}
SIMPLE: Final = ("pooled-linear", "training-median", "training-mean")


def answer(
    study: Study, compared: Sequence[Comparison], paired: Sequence[PairedTable], percent: str
) -> list[list[str]]:
    """Paragraphs: the first sentence of each is the finding, the others are its grounds."""
    judged = judged_together(study, compared)
    found = [_together(judged, percent), _simple(study, judged[0])] if judged else []
    found += [_transfer(table, percent) for table in paired if table.phase == "finetune"]
    return [parts for parts in found if parts]


def _together(judged: Sequence[Comparison], percent: str) -> list[str]:
    """Together against alone: a count over all targets, then the weightiest in figures."""
    rivals = [line for one in judged for line in one.rivals() if line.model.startswith("single-")]
    one = judged[0]
    federated, lines = one.federated, {line.model: line for line in one.lines}
    if federated is None:
        return []
    digits = digits_of(one.metric, *(line.cell.value for line in one.lines))
    mean = lines.get(MEAN_OF_SINGLES)
    alone = (
        f", {shown(mean.cell.value, digits)} on average where hospitals train alone"
        if mean and mean.cell.value is not None
        else ""
    )
    figures = (
        f"For {one.target} at {one.place}, {of_metric(one)} is "
        f"{sentence(federated.cell, digits)} together{alone} ({percent} interval, "
        f"{federated.participants} people)."
    )
    return [_counted(rivals, len(judged)), figures] if rivals else [figures]


def _counted(rivals: Sequence[Line], targets: int) -> str:
    better, worse, few = (
        sum(line.verdict == verdict for line in rivals)
        for verdict in ("federated better", "federated worse", "too few people")
    )
    over = f" over {targets} targets" if targets > 1 else ""
    rest = len(rivals) - better - worse - few
    parts = [f"better than a hospital alone in {better} of {len(rivals)} paired comparisons{over}",
             f"worse in {worse}", f"undecided in {rest}"]  # fmt: skip
    parts += [f"with too few people to say in {few}"] if few else []
    return f"Training together is {', '.join(parts)}."


def _simple(study: Study, one: Comparison) -> list[str]:
    """The federated model against the best of those that need no network."""
    lines = [line for line in one.lines if line.model in SIMPLE and line.cell.value is not None]
    best: Line | None = None
    for line in lines:
        value = line.cell.value or 0.0
        if best is None or metrics.better(study.targets[one.target], value, best.cell.value or 0.0):
            best = line
    if best is None or best.difference is None:
        return []
    digits = digits_of(one.metric, *(line.cell.value for line in one.lines))
    apart = turned(best.difference, digits) + _p(best.difference)
    words = {"federated better": "better than", "federated worse": "worse than",
             "not distinguishable": "not told apart from"}  # fmt: skip
    word = words.get(best.verdict, "not judged against (too few people)")
    return [
        f"Training together is {word} the strongest simple rival, the {best.title}.",
        f"That gives {sentence(best.cell, digits)}; together minus it is {apart}.",
    ]


def _p(cell: Cell) -> str:
    return "" if cell.adjusted is None else f", adjusted p {p_shown(cell.adjusted)}"


def _transfer(table: PairedTable, percent: str) -> list[str]:
    """Pretraining against none and against the linear model, from most people where counts vary."""
    site = site_of(table)
    most = max((pair.k for pair in table.lines), default=0)
    pairs = [pair for pair in table.lines if pair.k == most and site in pair.cells]
    told = list(_told(table, pairs, site))
    if not told:
        return []
    where = "the hospitals that tuned it" if site == TOGETHER else site
    learnt = f", learnt from {most} people" if most else ""
    people = max(pair.cells[site].n_participants for pair in pairs)
    figures = "; ".join(one for _, _, one in told)
    grounds = (
        f"That is {table.task} at {where}{learnt}, in {of_metric(table)} ({percent} interval, "
        f"{people} test people): {figures}."
    )
    words: dict[str, list[str]] = {}
    for word, rival, _ in told:
        words.setdefault(word, []).append(rival)
    found = [word.format(" or than ".join(rivals)) for word, rivals in words.items()]
    return [" ".join(found), grounds]


def _told(table: PairedTable, pairs: Sequence[Pair], site: str) -> Iterator[tuple[str, str, str]]:
    """What is said, of which rival, by which figures: pretraining against scratch, then linear."""
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.rival, pair.own)))
    pretrained = _first(names, "pretrained")
    for rival, what in ((_first(names, "scratch"), "training from scratch"),
                        (_first(names, "linear"), "the linear model")):  # fmt: skip
        for pair in pairs:
            cell = pair.cells[site].cell
            if {pair.own, pair.rival} != {pretrained, rival} or cell.value is None:
                continue
            digits = digits_of(table.metric, cell.value)
            is_own = pair.own == pretrained
            figures = sentence(cell, digits, signed=True) if is_own else turned(cell, digits)
            winner = table.winner(pair, site)
            word = _DECIDED[winner == pretrained] if winner else _OPEN[cell.adjusted is None]
            yield word, what, f"{pretrained} minus {rival} {figures}{_p(cell)}"


def _first(names: Sequence[str], start: str) -> str:
    """The way that trains all weights, if there is one that starts so; else the first."""
    found = [name for name in names if name.startswith(start)]
    return next((name for name in found if name.endswith("full")), next(iter(found), ""))
