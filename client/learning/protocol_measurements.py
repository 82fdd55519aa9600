"""What the repeats of one way and size come to: each by itself, all together, and beside a rival's.

A repeat judges few people, so its own number mostly stays at the site (`policy.minimum_support`);
behind what is told of all repeats stands everyone who judged in any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.answer import Measured
from client.data.cohort import Cohort
from client.learning.intervals import Judged, difference, z_of
from client.learning.kept_repeats import Repeat
from client.learning.measurement import fewest, row
from client.learning.resampled_statistics import Mean, corrected_mean, sign_flip
from client.learning.ways import Indices, Split
from client.site import Site
from common import metrics
from common.network.tuning import Task
from common.protocol.orders import Order
from common.schemes import Protocol, seed_of_repeat
from common.seeding import seed_of
from common.study import Study

Floats = NDArray[np.floating[Any]]
_LEVEL: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """The repeats of one order.

    splits: of every repeat. repeats: those that more than one class was learnt from and judged by.
    """

    study: Study
    site: Site
    cohort: Cohort
    order: Order
    protocol: Protocol
    task: Task
    splits: Mapping[int, Split]
    repeats: Mapping[int, Repeat]

    def rows(self, rivals: Mapping[str, Mapping[int, Repeat]]) -> list[Measured]:
        """Everything that is told; `rivals` are earlier orders' repeats, on the same images."""
        found = [self._of_repeat(number) for number in self.splits]
        found += self._of_all()
        for rival, theirs in rivals.items():
            found += self._against(rival, theirs)
        return found

    @cached_property
    def _judged(self) -> dict[int, Judged]:
        """Repeats whose metric is defined."""
        return self._defined(self.repeats)

    def _defined(self, repeats: Mapping[int, Repeat]) -> dict[int, Judged]:
        """Those that say something: a network that diverged ranks nobody, if NaN has a place."""
        finite = {n: one for n, one in repeats.items() if np.isfinite(one.predicted).all()}
        found = {number: self._judge([one]) for number, one in finite.items()}
        return {n: one for n, one in found.items() if np.isfinite(one.value(self._metric))}

    def _judge(self, repeats: list[Repeat]) -> Judged:
        """Of one repeat, or of several that judge on the same images."""
        test = repeats[0].test
        people = [self.cohort.participants[index] for index in test]
        return Judged.of(
            self.task.target, self._label[test], [r.predicted for r in repeats], people
        )

    def _of_repeat(self, number: int) -> Measured:
        split, judged, metric = self.splits[number], self._judged.get(number), self._metric
        value = judged.value(metric) if judged is not None else None
        bounds = judged.bounds(metric, self._z) if judged is not None else None
        seed = seed_of_repeat(self.study.seed, self.site.name, self.protocol, self.order.k, number)
        more = {"repeat": number, "n_train": len(split.train), "seed": seed}
        return self._row(split.test, metric, value, bounds, **more)

    def _of_all(self) -> list[Measured]:
        """How many repeats say something, and what they say in the middle and on average."""
        metric, defined = self._metric, float(len(self._judged))
        found = [self._row(self._everyone, metrics.REPEATS, defined, None)]
        if not self._judged:
            return found
        values = self._values(list(self._judged))
        mean = self._mean_of(list(self._judged), values)
        low = 0.0
        high = np.inf if self.task.target.kind == "regression" else 1.0
        return [
            *found,
            self._row(self._everyone, metric + metrics.MEDIAN, float(np.median(values)), None),
            self._row(
                self._everyone, metric + metrics.OVER_DRAWS, mean.value,
                _within(mean.bounds, low, high),
            ),
        ]  # fmt: skip

    def _against(self, rival: str, theirs: Mapping[int, Repeat]) -> list[Measured]:
        """What lies between this way and a rival, repeat by repeat."""
        judged = self._defined({n: theirs[n] for n in self._judged if n in theirs})
        both = list(judged)
        if not both:
            return []
        their = np.array([judged[number].value(self._metric) for number in both])
        apart = self._values(both) - their
        mean = self._mean_of(both, apart, theirs)
        reach = np.inf if self.task.target.kind == "regression" else 1.0
        within = [
            difference(self._judged[n], judged[n], self._metric, self.study.evaluation.confidence).p
            for n in both
        ]
        told = [p for p in within if p is not None]
        name, everyone = f"{self._metric}_minus_{rival}", self._tested(both)
        seed = seed_of(self.study.seed, "sign-flip", self.site.name, self.order.id, rival)
        p = mean.p if self._is_enough(everyone) else None
        rows = [
            self._row(everyone, name, mean.value, _within(mean.bounds, -reach, reach), p=p),
            self._row(everyone, name + metrics.FLIPPED, mean.value, None, p=sign_flip(apart, seed)),
        ]
        if told:
            share = float(np.mean(np.array(told) < _LEVEL))
            rows.append(self._row(everyone, name + metrics.WITHIN, share, None))
        return rows

    def _mean_of(
        self, numbers: list[int], values: Floats, theirs: Mapping[int, Repeat] | None = None
    ) -> Mean:
        """The mean of `values`, as surely as overlapping draws tell it.

        Judged by the same people each time, it is as sure as they are many: the correction is for
        people who change.
        """
        confidence = self.study.evaluation.confidence
        if self.protocol.judges_change:
            ratio = np.mean([len(self.splits[n].test) / len(self.splits[n].train) for n in numbers])
            return corrected_mean(values, float(ratio), confidence)
        ours = self._judge([self.repeats[n] for n in numbers])
        if theirs is None:
            return Mean(
                value=float(values.mean()), bounds=ours.bounds(self._metric, self._z), p=None
            )
        other = self._judge([theirs[n] for n in numbers])
        apart = difference(ours, other, self._metric, confidence)
        return Mean(value=apart.value, bounds=apart.bounds, p=apart.p)

    def _values(self, numbers: list[int]) -> Floats:
        return np.array([self._judged[number].value(self._metric) for number in numbers])

    def _tested(self, numbers: list[int]) -> Indices:
        return np.unique(np.concatenate([self.splits[number].test for number in numbers]))

    @cached_property
    def _everyone(self) -> Indices:
        """All images that judged, or would have."""
        return self._tested(list(self._judged) or list(self.splits))

    def _is_enough(self, test: Indices) -> bool:
        people = {self.cohort.participants[index] for index in test}
        return (
            len(people) >= metrics.VERDICT_PEOPLE
            and self._fewest(test) >= metrics.VERDICT_OF_A_CLASS
        )

    def _fewest(self, test: Indices) -> int:
        people = tuple(self.cohort.participants[index] for index in test)
        return fewest(self.task.target, self._label[test], people)

    def _row(
        self,
        test: Indices,
        metric: str,
        value: float | None,
        bounds: tuple[float, float] | None,
        p: float | None = None,
        **more: int,
    ) -> Measured:
        """One row about the images `test`, each counted once."""
        images, order = np.unique(test), self.order
        told = row(
            self.site, order, tuple(self.cohort.participants[index] for index in images),
            task=order.task, target=self.task.target_name, model=order.model, metric=metric,
            value=value, bounds=bounds, p=p,
        )  # fmt: skip
        own = {"init": order.init, "method": order.method, "k": order.k, **more}
        return Measured(told.model_copy(update=own), self._fewest(images))

    @property
    def _metric(self) -> str:
        return metrics.primary(self.task.target)

    @property
    def _label(self) -> NDArray[np.float32]:
        return self.cohort.labels[self.task.target_name]

    @property
    def _z(self) -> float:
        return z_of(self.study.evaluation.confidence)


def _within(
    bounds: tuple[float, float] | None, low: float, high: float
) -> tuple[float, float] | None:
    """An interval, cut where the metric ends."""
    return None if bounds is None else (max(bounds[0], low), min(bounds[1], high))
