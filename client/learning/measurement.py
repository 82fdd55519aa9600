"""Predictions become measurements: each with its interval over participants and its n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.answer import Measured
from client.data.cohort import Cohort
from client.learning.intervals import (
    Judged,
    z_of,
)
from client.learning.intervals import difference as between
from client.site import Site
from common import metrics
from common.protocol.orders import Measurement, Order
from common.sections import Target
from common.seeding import seed_of
from common.study import Study

Floats = NDArray[np.floating[Any]]


def measure(  # noqa: PLR0913, PLR0917  a row of results.csv has as many columns
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    name: str,
    indices: NDArray[np.int64],
    predicted: Floats,
    task: str = "",
    model: str | None = None,
    *,
    intervals: bool = True,
) -> list[Measured]:
    """Every metric of `name` for the samples `indices`, all labelled, and their predictions.

    A primary metric that is not defined, since all samples are of one class, has no value. Below
    three people nothing has an interval, nor a correlation a value.
    """
    judged, people, smallest = _judged(study, cohort, name, indices, [predicted])
    of = model or order.model
    asked = judged.metrics if intervals else metrics.of_rounds(study.targets[name])
    rows = []
    for metric in asked:
        value = judged.value(metric)
        if metric in metrics.OF_A_LINE and (
            len(set(people)) < metrics.FEWEST or of.endswith("-mean")
        ):
            continue
        if np.isfinite(value) or metric == metrics.primary(study.targets[name]):
            bounds = judged.bounds(metric, z_of(study.evaluation.confidence)) if intervals else None
            told = row(
                site, order, people, task=task, target=name, model=of, metric=metric,
                value=value if np.isfinite(value) else None, bounds=bounds,
            )  # fmt: skip
            rows.append(Measured(told, smallest))
    return rows


def at_chosen_threshold(
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    name: str,
    indices: NDArray[np.int64],
    said: Floats,
    task: str,
) -> list[Measured]:
    """Balanced accuracy of what was `said`, 0 or 1, by a threshold that other people chose."""
    metric = "balanced_accuracy"
    found = (study, site, cohort, order, name, indices)
    return _one(*found, [said], task, metric=metric, called=metric + metrics.CHOSEN)


def mean_over_draws(
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    name: str,
    indices: NDArray[np.int64],
    predicted: Sequence[Floats],
    task: str,
) -> list[Measured]:
    """Primary metric of an order's models, one for each draw, with one interval for their mean."""
    primary = metrics.primary(study.targets[name])
    found = (study, site, cohort, order, name, indices)
    return _one(*found, predicted, task, metric=primary, called=primary + metrics.OVER_DRAWS)


def _one(  # noqa: PLR0913
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    name: str,
    indices: NDArray[np.int64],
    predicted: Sequence[Floats],
    task: str,
    *,
    metric: str,
    called: str,
) -> list[Measured]:
    """The row of one metric under a name of its own; none where it is not defined."""
    judged, people, smallest = _judged(study, cohort, name, indices, predicted)
    value = judged.value(metric)
    if not np.isfinite(value):
        return []
    bounds = judged.bounds(metric, z_of(study.evaluation.confidence))
    told = row(
        site, order, people, task=task, target=name, model=order.model, value=value,
        metric=called, bounds=bounds,
    )  # fmt: skip
    return [Measured(told, smallest)]


def difference(  # noqa: PLR0913, PLR0917
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    name: str,
    indices: NDArray[np.int64],
    ours: Sequence[Floats],
    theirs: Sequence[Floats],
    rival: str,
    task: str = "",
) -> list[Measured]:
    """Primary metric of this order's model minus `rival`'s, with a paired interval.

    Of several models each, one for each draw, it is the difference of their means. A p-value, and
    with it a verdict, needs 50 people and 10 of each class.
    """
    found, people, smallest = _judged(study, cohort, name, indices, ours)
    other, _, _ = _judged(study, cohort, name, indices, theirs)
    primary = metrics.primary(study.targets[name])
    if not np.isfinite(found.value(primary) - other.value(primary)):
        return []
    several = len(set(people)) >= metrics.VERDICT_PEOPLE and smallest >= metrics.VERDICT_OF_A_CLASS
    apart = between(found, other, primary, study.evaluation.confidence, tested=several)
    told = row(
        site, order, people, task=task, target=name, model=order.model, value=apart.value,
        metric=f"{primary}_minus_{rival}", bounds=apart.bounds, p=apart.p,
    )  # fmt: skip
    return [Measured(told, smallest)]


def _judged(
    study: Study,
    cohort: Cohort,
    name: str,
    indices: NDArray[np.int64],
    predicted: Sequence[Floats],
) -> tuple[Judged, tuple[str, ...], int]:
    """What is judged, whose samples these are, and the people of the rarest class."""
    target, label = study.targets[name], cohort.labels[name][indices]
    people = tuple(cohort.participants[i] for i in indices)
    return Judged.of(target, label, predicted, people), people, fewest(target, label, people)


def means(
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    name: str,
    indices: NDArray[np.int64],
    told: Mapping[str, Floats],
) -> list[Measured]:
    """The mean over people of each number that is told of every sample in `indices`."""
    people = tuple(cohort.participants[i] for i in indices)
    found = []
    for metric, values in told.items():
        generator = np.random.default_rng(seed_of(study.seed, "bootstrap", site.name, name))
        value, drawn = metrics.mean_by_person(values, people, generator, study.evaluation.bootstrap)
        several = len(set(people)) >= metrics.FEWEST
        one = row(
            site,
            order,
            people,
            task=order.task,
            target=name,
            model=order.model,
            metric=metric,
            value=value,
            bounds=metrics.percentiles(drawn, study.evaluation.confidence) if several else None,
        )
        asked = {name: getattr(order, name) for name in ("init", "method", "k", "repeat")}
        found.append(Measured(one.model_copy(update=asked), len(set(people))))
    return found


def row(
    site: Site,
    order: Order,
    people: tuple[str, ...],
    *,
    bounds: tuple[float, float] | None,
    value: float | None,
    p: float | None = None,
    **names: str,
) -> Measurement:
    """One row of results.csv, in the figures that may leave."""
    return Measurement(
        phase=order.kind,
        site=site.name,
        role=site.role,
        value=None if value is None else metrics.figures(value),
        ci_low=metrics.figures(bounds[0]) if bounds else None,
        ci_high=metrics.figures(bounds[1]) if bounds else None,
        p=None if p is None else metrics.figures(p),
        n_participants=len(set(people)),
        n_scans=len(people),
        **names,
    )


def fewest(target: Target, label: Floats, people: tuple[str, ...]) -> int:
    """People behind the measurement, or in the rarest class that it tells apart."""
    if target.kind == "regression":
        return len(set(people))
    whose = np.asarray(people)
    return min(len(set(whose[label == one].tolist())) for one in np.unique(label))
