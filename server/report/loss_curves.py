"""How learning went, round by round: losses by term, and metrics of each model on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from common import metrics
from common.study import Study
from server.report import charts
from server.report.charts import PENS, Pen, Series
from server.report.figures import Figure
from server.report.findings import Record
from server.report.tables import METRIC_NAMES

_FEDERATED: Final = Pen(colour=0, width=2.2)
_POOLED: Final = Pen(colour=1, dashes="6 2.5")
_SINGLE: Final = Pen(colour=2, dashes="1.5 2", width=1.2)
_NOTES: Final = {
    "loss": "Mean over the sites' training scans during each round, weighted by labels. Losses of "
    "different targets are on different scales.",
    "validation_loss": "The same terms on the sites' validation participants, who teach it "
    "nothing, for the model as each round begins with it.",
}


def losses(study: Study, records: Sequence[Record], which: str) -> Figure | None:
    """Mean loss of each term; x is the round in which it was measured."""
    found = {name for record in records for name in record.get(which, {})}
    names = [name for name in study.pretraining_targets if name in found]
    names += sorted(found - set(names))
    series = [
        Series(
            name=name,
            points=tuple((r["round"], r[which][name]) for r in records if name in r.get(which, {})),
            pen=PENS[i % len(PENS)],
        )
        for i, name in enumerate(names)
    ]
    if not series:
        return None
    marked = [record["round"] for record in records if record["degraded"]]
    word = "training loss" if which == "loss" else "validation loss"
    title = f"{word.capitalize()} by term"
    note = _NOTES[which] + (" Dotted vertical lines mark degraded rounds." if marked else "")
    return Figure(
        name=which.replace("_", "-"),
        title=title,
        drawn=charts.curves(which, title, series, x="round", y=word, marked=marked),
        columns=("term", "round", which),
        rows=tuple((line.name, int(x), y) for line in series for x, y in line.points),
        key=charts.legend(series),
        note=note,
    )


def validation(study: Study, branches: Mapping[str, Sequence[Record]]) -> dict[str, Any] | None:
    """The primary metric of each model by target; a round judges the arrays that it starts from."""
    figures = []
    key: dict[str, Pen] = {}
    for number, (name, target) in enumerate(study.targets.items()):
        metric = metrics.primary(target)
        lines = {
            model: points
            for model, records in branches.items()
            if (points := _points(records, name, metric))
        }
        if lines:
            label = METRIC_NAMES[metric] + (f" in {target.unit}" if target.unit else "")
            figure = _figure(f"validation-{number}", name, metric, label, lines)
            figures.append(figure)
            key.update(figure.key)
    return {"figures": figures, "key": list(key.items())} if figures else None


def _figure(
    name: str,
    target: str,
    metric: str,
    label: str,
    lines: Mapping[str, tuple[tuple[float, float], ...]],
) -> Figure:
    series = [Series(name=_family(model), points=points, pen=_pen(model))
              for model, points in lines.items()]  # fmt: skip
    title = f"Validation {label} of {target}"
    return Figure(
        name=name,
        title=title,
        # rivals first, so that the federated line lies on top
        drawn=charts.curves(name, title, series[::-1], x="rounds completed", y=label),
        columns=("model", "rounds_completed", metric),
        rows=tuple((model, int(x), y) for model, points in lines.items() for x, y in points),
        key=charts.legend(series),
    )


def _points(records: Sequence[Record], target: str, metric: str) -> tuple[tuple[float, float], ...]:
    found = ((r["round"] - 1, r["validation"].get(target, {}).get(metric)) for r in records)
    return tuple((x, y) for x, y in found if y is not None)


def _family(model: str) -> str:
    return "models of one training site alone" if model.startswith("single-") else model


def _pen(model: str) -> Pen:
    return {"federated": _FEDERATED, "pooled": _POOLED}.get(model, _SINGLE)
