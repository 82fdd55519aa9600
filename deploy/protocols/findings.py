"""What the cells of a protocol measured: tidy rows, medians over seeds, differences, sentences.

A pretrained network is compared with one from scratch of the same task, network, share and seed, so
with the same people trained on and judged by. What does not help stands beside what does.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from common import metrics
from common.runtime.durable import write_atomically
from deploy.protocols.protocol import SCRATCH, Cell
from deploy.protocols.studies import TASKS
from server.report.tables import METRIC_NAMES, read_results, shown
from server.run import Run

INSIDE: Final = "held-out people"
ZERO_SHOT: Final = "zero-shot"
FEW_SHOT: Final = "few-shot"
RIVAL: Final = "rival"
PRETRAINING: Final = "pretraining"
MEASURES: Final = {
    INSIDE: "people of the training hospitals who were not trained on, by the arrays as they came "
    "to the last round",
    ZERO_SHOT: "the unseen hospital, the network as it is",
    FEW_SHOT: "the unseen hospital, with a linear head fitted there on the frozen network",
}
RIVALS: Final = {
    "constant": "the study's constant",
    "site-mean": "the mean of the unseen hospital",
    "site-linear": "a linear model of regional volumes, fitted at the unseen hospital",
    "pooled-linear": "a linear model of the training hospitals' pooled regional volumes",
}
_FEWEST: Final = 2  # seeds; one always agrees with itself
_DIGITS: Final = {"mae": 2}  # behind the point, of values and differences alike; 3 of shares
_MODELS: Final = {"federated": ZERO_SHOT, "federated+head": FEW_SHOT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement of one cell: a line of cells.csv; `people` were trained on."""

    cell: str
    task: str
    architecture: str
    initialisation: str
    share: float
    seed: int
    measured: str
    model: str
    metric: str
    value: float
    ci_low: float | None = None
    ci_high: float | None = None
    n_participants: int = 0
    n_scans: int = 0
    people: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Values of several seeds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Their median."""
        return statistics.median(self.values)

    def in_words(self, digits: int, *, signed: bool = False) -> str:
        """`0.71 (0.68 to 0.74)`; one value has no range."""
        middle = shown(self.median, digits, signed=signed)
        if len(self.values) == 1:
            return middle
        low, high = (shown(end(self.values), digits, signed=signed) for end in (min, max))
        return f"{middle} ({low} to {high})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A pretrained network minus the same from scratch, seed by seed; `gains` are above 0."""

    task: str
    measured: str
    architecture: str
    initialisation: str
    share: float
    metric: str
    differences: Spread

    @property
    def gains(self) -> int:
        """On how many seeds pretraining was better."""
        return sum(_better(self.metric, value) for value in self.differences.values)

    @property
    def losses(self) -> int:
        """On how many it was worse."""
        return sum(_better(self.metric, -value) for value in self.differences.values)

    @property
    def verdict(self) -> str:
        """Better or worse where several seeds all say so, else undecided."""
        seeds = len(self.differences.values)
        if seeds < _FEWEST:
            return "undecided"
        return {self.gains: "better", self.losses: "worse"}.get(seeds, "undecided")


def rows_of(cell: Cell, run: Run) -> list[Row]:
    """Everything that a finished cell measured.

    Raises
    ------
    CallosumError
        If its files are not what was written.
    """
    records = run.federated.records()
    last = records[-1]
    about = {
        "cell": cell.name,
        "task": cell.task,
        "architecture": cell.architecture,
        "initialisation": cell.source,
        "share": cell.share,
        "seed": cell.seed,
        "people": sum(line["participants"].get("shared", 0) for line in last["answered"].values()),
    }
    if not cell.task:
        return [
            Row(**about, measured=PRETRAINING, model=when, metric=f"validation loss, {term}",
                value=value)
            for when, record in (("first round", records[0]), ("last round", last))
            for term, value in sorted(record["validation_loss"].items())
        ]  # fmt: skip
    task = TASKS[cell.task]  # type: ignore[index]
    metric = metrics.primary(task.of_target)
    found = []
    inside = last["validation"].get(task.target, {})
    if metric in inside:
        found.append(
            Row(**about, measured=INSIDE, model="federated", metric=metric, value=inside[metric],
                n_scans=int(inside["n"]))
        )  # fmt: skip
    for row in read_results(run):
        measured = _MODELS.get(row.model, RIVAL if row.model in RIVALS else "")
        is_one = row.phase == "evaluate" and (row.target, row.metric) == (task.target, metric)
        if measured and is_one and row.site in run.study.sites.heldout and row.value is not None:
            found.append(
                Row(**about, measured=measured, model=row.model, metric=metric, value=row.value,
                    ci_low=row.ci_low, ci_high=row.ci_high, n_participants=row.n_participants,
                    n_scans=row.n_scans)
            )  # fmt: skip
    return found


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write cells.csv: a measurement a line, floats in full."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({key: "" if value is None else value for key, value in asdict(row).items()})
    write_atomically(path, text.getvalue().encode())


def spread(rows: Iterable[Row], **of: object) -> Spread | None:
    """Values over seeds of the rows that have these entries."""
    found = [row for row in rows if all(getattr(row, key) == value for key, value in of.items())]
    values = tuple(row.value for row in sorted(found, key=lambda row: (row.seed, row.cell)))
    return Spread(values=values) if values else None


def contrasts(rows: Sequence[Row]) -> list[Contrast]:
    """Every pretrained network against scratch, over the seeds that both have."""
    of = {_key(row): row for row in rows if row.measured in MEASURES}
    apart: dict[tuple[str, str, str, str, float, str], list[float]] = {}
    for row in of.values():
        begun = of.get((row.task, row.measured, row.architecture, SCRATCH, row.share, row.seed))
        if row.initialisation != SCRATCH and begun is not None:
            key = (row.task, row.measured, row.architecture, row.initialisation, row.share,
                   row.metric)  # fmt: skip
            apart.setdefault(key, []).append(row.value - begun.value)
    names = ("task", "measured", "architecture", "initialisation", "share", "metric")
    return [
        Contrast(**dict(zip(names, key, strict=True)), differences=Spread(values=tuple(values)))  # type: ignore[arg-type]
        for key, values in apart.items()
    ]


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the numbers say: in all, by what is compared, and against what needs no network."""
    found = contrasts(rows)
    if not found:
        return ["No pretrained network and its like from scratch are both finished yet."]
    seeds = sorted({len(one.differences.values) for one in found})
    opening = (
        f"Pretrained and from scratch were compared {len(found)} times (task, what is measured, "
        f"network, beginning, share), each over {' or '.join(map(str, seeds))} "
        f"{'seed' if seeds == [1] else 'seeds'}: {_tally(found)}. 'Better' and 'worse' are what "
        f"all seeds of a comparison agree on, two at least; were there no difference at all, "
        f"{max(seeds[0], _FEWEST)} would agree in {2.0 ** (1 - max(seeds[0], _FEWEST)):.0%} of "
        "comparisons, half of these better, half worse."
    )
    said = [opening]
    groups: tuple[tuple[str, Callable[[Contrast], object]], ...] = (
        ("By task", lambda one: one.task),
        ("By what is measured", lambda one: one.measured),
        ("By network", lambda one: one.architecture),
        ("By beginning", lambda one: one.initialisation),
        ("By share of people", lambda one: f"{one.share:.0%}"),
    )
    for title, key in groups:
        names = list(dict.fromkeys(key(one) for one in found))
        parts = [f"{name}: {_tally([one for one in found if key(one) == name])}" for name in names]
        said.append(f"{title}: {'; '.join(parts)}.")
    return [*said, *_by_network(found), *_against_rivals(rows)]


def _by_network(found: Sequence[Contrast]) -> list[str]:
    """Where pretraining helps and where not, a sentence a task, measure and network."""
    said = []
    for key in dict.fromkeys((one.task, one.measured, one.architecture) for one in found):
        these = [one for one in found if (one.task, one.measured, one.architecture) == key]
        parts = []
        for verdict in ("better", "worse"):
            clear = [one for one in these if one.verdict == verdict]
            if clear:
                parts.append(f"{verdict} on every seed from {_listed(map(_told, clear))}")
        rest = sum(one.verdict == "undecided" for one in these)
        if rest:
            parts.append(f"the other {rest} undecided" if parts else f"all {rest} undecided")
        metric = METRIC_NAMES[these[0].metric]
        said.append(f"{key[0]}, {key[1]}, {key[2]} ({metric}): {'; '.join(parts)}.")
    return said


def _against_rivals(rows: Sequence[Row]) -> list[str]:
    """Whether the best network reaches what the simplest models do, at the unseen hospital."""
    said = []
    for task, share in dict.fromkeys((row.task, row.share) for row in rows if row.task):
        here = [row for row in rows if (row.task, row.share) == (task, share)]
        rivals = _medians(row for row in here if row.measured == RIVAL)
        for measured in (ZERO_SHOT, FEW_SHOT):
            nets = _medians(row for row in here if row.measured == measured)
            if not rivals or not nets:
                continue
            metric = here[0].metric
            best = max if metric != "mae" else min
            (net, value), (rival, theirs) = (best(one.items(), key=lambda item: item[1])
                                             for one in (nets, rivals))  # fmt: skip
            digits = digits_of(metric)
            verb = "is ahead of" if _better(metric, value - theirs) else "does not reach"
            said.append(
                f"{task} at {share:.0%}, {measured}: the best of {len(nets)} medians, {net} "
                f"({shown(value, digits)}), {verb} {RIVALS[rival]} ({shown(theirs, digits)})."
            )
    return said


def _medians(rows: Iterable[Row]) -> dict[str, float]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        net = f"{row.architecture} from {row.initialisation}"
        found.setdefault(row.model if row.measured == RIVAL else net, {})[row.seed] = row.value
    return {name: statistics.median(values.values()) for name, values in found.items()}


def _told(one: Contrast) -> str:
    middle = shown(one.differences.median, digits_of(one.metric), signed=True)
    return f"{one.initialisation} at {one.share:.0%} ({middle})"


def digits_of(metric: str) -> int:
    """Digits behind the point."""
    return _DIGITS.get(metric, 3)


def _tally(found: Sequence[Contrast]) -> str:
    counts = [(word, sum(one.verdict == word for one in found))
              for word in ("better", "worse", "undecided")]  # fmt: skip
    return ", ".join(f"{number} {word}" for word, number in counts)


def _better(metric: str, difference: float) -> bool:
    return difference < 0 if metric == "mae" else difference > 0


def _key(row: Row) -> tuple[object, ...]:
    return row.task, row.measured, row.architecture, row.initialisation, row.share, row.seed


def _listed(words: Iterable[str]) -> str:
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last
