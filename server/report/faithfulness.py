"""How faithful maps are to the networks that they were made of: means over sites, by people.

Networks are asked again once the loudest places of a map are gone, and once as many at random are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from common import metrics
from common.protocol.orders import Measurement
from server.report import charts
from server.report.charts import PENS, Series
from server.report.figures import Figure

Told = Mapping[str, float]  # a metric's mean over sites and draws
_FIRST: Final = 5  # per cent, that the table shows


def faithfulness(rows: Iterable[Measurement]) -> Iterator[dict[str, Any]]:
    """Task by task: a line for each way to learn it, and a figure of those with most people."""
    explained = (row for row in rows if row.phase == "explain" and row.value is not None)
    told = sorted(explained, key=lambda row: row.task)
    for task, of_task in groupby(told, key=lambda row: row.task):
        ways = _ways(of_task)
        largest = max(k for _, k in ways)
        drawn = {way: found for (way, k), found in ways.items() if k == largest}
        yield {
            "task": task,
            "lines": [(way, k, _shown(found)) for (way, k), found in ways.items()],
            "first": _FIRST,
            "people": largest,
            "figure": _figure(task, list(_series(drawn))) if _is_told(drawn) else None,
        }


def _is_told(drawn: Mapping[str, Told]) -> bool:
    return metrics.SAID in next(iter(drawn.values()))


def _ways(rows: Iterable[Measurement]) -> dict[tuple[str, int], Told]:
    """Means by way and number of people, weighted by the people behind each."""
    found: dict[tuple[str, int], dict[str, list[Measurement]]] = {}
    for row in rows:
        way = found.setdefault((f"{row.init}/{row.method}", row.k), {})
        way.setdefault(row.metric, []).append(row)
    return {
        way: {
            metric: sum((one.value or 0.0) * one.n_participants for one in ones)
            / sum(one.n_participants for one in ones)
            for metric, ones in by_metric.items()
        }
        for way, by_metric in sorted(found.items())
    }


def _shown(told: Told) -> Sequence[float | None]:
    """What the table's columns hold, as they are named in the page."""
    without = metrics.without(_FIRST)
    names = (metrics.SAID, without, without + metrics.AT_RANDOM, metrics.AGREEMENT)
    return [told.get(name) for name in names]


def _series(drawn: Mapping[str, Told]) -> Iterator[Series]:
    for number, (way, told) in enumerate(drawn.items()):
        for place, (end, what) in enumerate(
            (("", "loudest first"), (metrics.AT_RANDOM, "at random"))
        ):
            points = [(0.0, told[metrics.SAID])] if metrics.SAID in told else []
            points += [
                (float(share), told[metrics.without(share) + end])
                for share in metrics.DELETED
                if metrics.without(share) + end in told
            ]
            pen = PENS[(2 * number + place) % len(PENS)]
            yield Series(name=f"{way}, {what}", points=tuple(points), pen=pen)


def _figure(task: str, series: Sequence[Series]) -> Figure:
    name = f"faithfulness-{task}"
    title = f"Probability of what was said of {task}, by how much of a sample is deleted"
    return Figure(
        name=name,
        title=title,
        drawn=charts.curves(
            name, title, series, x="% of places deleted", y="probability of what was said"
        ),
        columns=("way", "percent_deleted", "probability"),
        rows=tuple((line.name, x, y) for line in series for x, y in line.points),
        key=charts.legend(series),
    )
