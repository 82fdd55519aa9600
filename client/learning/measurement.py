"""Predictions become measurements: each with its interval over participants and its n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.answer import Measured
from client.data.cohort import Cohort
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
    target, label = study.targets[name], cohort.labels[name][indices]
    people = tuple(cohort.participants[i] for i in indices)
    several = len(set(people)) >= metrics.FEWEST
    drawn: dict[str, metrics.Repeats] = {}
    if intervals and several:
        drawn = _bootstrapped(study, site, name, people, label, predicted)
    values = metrics.exact(target, label, predicted)
    fewest = _fewest(target, label, people)
    return [
        Measured(
            row(
                site,
                order,
                people,
                task=task,
                target=name,
                model=model or order.model,
                metric=metric,
                value=value if np.isfinite(value) else None,
                bounds=metrics.percentiles(drawn[metric], study.evaluation.confidence)
                if np.isfinite(value) and metric in drawn
                else None,
            ),
            fewest,
        )
        for metric, value in values.items()
        if (np.isfinite(value) or metric == metrics.primary(target))
        and not (metric == "r" and (not several or (model or "").endswith("-mean")))
    ]


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
    found = _Primary.of(study, site, cohort, name, indices, predicted)
    metric = metrics.primary(study.targets[name]) + metrics.OVER_DRAWS
    return found.rows(study, site, order, task=task, target=name, metric=metric)


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

    Of several models each, one for each draw, it is the difference of their means.
    """
    found, other = (
        _Primary.of(study, site, cohort, name, indices, predicted) for predicted in (ours, theirs)
    )
    apart = replace(found, value=found.value - other.value, drawn=found.drawn - other.drawn)
    metric = f"{metrics.primary(study.targets[name])}_minus_{rival}"
    return apart.rows(study, site, order, task=task, target=name, metric=metric)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Primary:
    """The primary metric on some samples, its mean where several models predict them.

    drawn: (R,) the same for every resampling of the people, who are resampled alike for all
    models of a site; empty where they are too few. fewest: people of the rarest class.
    """

    value: float
    drawn: metrics.Repeats
    people: tuple[str, ...]
    fewest: int

    @staticmethod
    def of(
        study: Study,
        site: Site,
        cohort: Cohort,
        name: str,
        indices: NDArray[np.int64],
        predicted: Sequence[Floats],
    ) -> _Primary:
        target, label = study.targets[name], cohort.labels[name][indices]
        people = tuple(cohort.participants[i] for i in indices)
        metric = metrics.primary(target)
        values = [metrics.exact(target, label, one)[metric] for one in predicted]
        drawn = np.empty(0)
        if len(set(people)) >= metrics.FEWEST:
            drawn = np.zeros(study.evaluation.bootstrap)
            for one in predicted:  # a thousand draws of a hundred thousand would take 8 GB at once
                drawn += _bootstrapped(study, site, name, people, label, one)[metric]
            drawn /= len(predicted)
        return _Primary(
            value=float(np.mean(values)),
            drawn=drawn,
            people=people,
            fewest=_fewest(target, label, people),
        )

    def rows(self, study: Study, site: Site, order: Order, **names: str) -> list[Measured]:
        """The row of this value; none where it is not defined."""
        if not np.isfinite(self.value):
            return []
        bounds = metrics.percentiles(self.drawn, study.evaluation.confidence)
        found = row(
            site, order, self.people, model=order.model, value=self.value, bounds=bounds, **names
        )
        return [Measured(found, self.fewest)]


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
        n_participants=len(set(people)),
        n_scans=len(people),
        **names,
    )


def _fewest(target: Target, label: Floats, people: tuple[str, ...]) -> int:
    """People behind the measurement, or in the rarest class that it tells apart."""
    if target.kind == "regression":
        return len(set(people))
    whose = np.asarray(people)
    return min(len(set(whose[label == one].tolist())) for one in np.unique(label))


def _bootstrapped(
    study: Study,
    site: Site,
    name: str,
    people: tuple[str, ...],
    label: Floats,
    predicted: Floats,
) -> dict[str, metrics.Repeats]:
    """Every model at a site is resampled alike, so that intervals differ by models alone."""
    generator = np.random.default_rng(seed_of(study.seed, "bootstrap", site.name, name))
    return metrics.bootstrapped(
        study.targets[name], label, predicted, people, generator, study.evaluation.bootstrap
    )
