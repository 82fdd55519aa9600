"""A site's answer to one order of a protocol: a way, a size, and all of its repeats.

Each repeat draws who learns, chooses and judges, learns by the way's nine settings, and judges
once. What was done is kept, so that an order that was cut short goes on behind its last repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from logging import getLogger
from pathlib import Path

import numpy as np

from client.answer import Measured
from client.data.cohort import Cohort
from client.learning.kept_repeats import KeptRepeats, Repeat
from client.learning.linear import Features
from client.learning.protocol_measurements import Measuring
from client.learning.repeat_workers import work_through
from client.learning.resampling import (
    Draw,
    People,
    secret_number,
    shuffled,
    tells_apart,
)
from client.learning.ways import Split, Way
from client.site import Site
from common.arrays import Arrays
from common.errors import DamagedError, Refusal
from common.network.tuning import Task, task_of
from common.protocol.orders import Order
from common.runtime.progress import track
from common.schemes import Protocol, seed_of_repeat
from common.seeding import seed_of
from common.study import Study

_log = getLogger("callosum.site")


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """One order of a protocol.

    arrays: of the shared network, with the site's own; empty where the order starts from scratch.
    folder: of the run at this site. features: of every sample, for ways in closed form.
    """

    study: Study
    site: Site
    cohort: Cohort
    order: Order
    arrays: Arrays
    folder: Path
    features: Features | None = None

    def measured(self) -> list[Measured]:
        """Do what is not done yet, and measure it.

        Raises
        ------
        Refusal
            ORDER_MALFORMED if the study asks for no such thing, NO_DATA if the site lacks labels.
        """
        job = self._dealt()
        splits = {number: job.split(number) for number in range(job.protocol.total)}
        whole = [n for n, split in splits.items() if job.is_told_apart(split)]
        if len(whole) < len(splits):
            few = len(splits) - len(whole)
            _log.warning("%s: %s: %d of %d repeats drew one class alone and say nothing",
                         self.site.name, self.order.task, few, len(splits))  # fmt: skip
        job.do(whole)
        measuring = Measuring(
            study=self.study, site=self.site, cohort=job.cohort, order=self.order,
            protocol=job.protocol, task=job.task, splits=splits,
            repeats={number: job.kept(number, splits[number]) for number in whole},
        )  # fmt: skip
        rivals = {rival: job.of_rival(rival, splits) for rival in self.order.against}
        return measuring.rows(rivals)

    def do(self, numbers: list[int]) -> None:
        """Those of the repeats `numbers` that are not kept, here or in several processes."""
        waiting = [number for number in numbers if self._find(number) is None]
        if not waiting:
            return
        way = self._way(0)
        job = replace(self, features=way.made_features()) if way.is_closed else self
        device = self.site.device
        title = f"{self.site.name}: {self.order.task} by {self._named} of {self.order.k}, repeats"
        with track(title, len(waiting)) as advance:
            work_through(job, waiting, device.workers, device.kind, advance)

    def work(self, number: int) -> None:
        """Learn, choose and judge once."""
        split, way = self.split(number), self._way(number)
        model = way.learn(split)
        images, places = np.unique(split.test, return_inverse=True)
        predicted = way.predicted(model, images)[places]
        KeptRepeats(self.folder).keep(
            self.order, number, Repeat(test=split.test, predicted=predicted)
        )

    def kept(self, number: int, split: Split) -> Repeat:
        """A repeat that was done; done again if other people have come to judge since."""
        found = self._find(number)
        if found is None or not np.array_equal(found.test, split.test):
            self.work(number)
            found = self._find(number)
        if found is None:
            raise DamagedError(f"repeat {number} of {self.order.task} cannot be kept here")
        return found

    def of_rival(self, rival: str, splits: Mapping[int, Split]) -> dict[int, Repeat]:
        """What an earlier way kept of the same images."""
        ways = {way.replace("/", "-"): way for way in self.task.settings.methods}
        if rival not in ways:
            raise Refusal("ORDER_MALFORMED", f"{self.order.task} is not learnt by {rival}")
        found = {}
        for number, split in splits.items():
            try:
                one = KeptRepeats(self.folder).of_rival(self.order, ways[rival], number, split.test)
            except DamagedError as error:
                _log.error("%s; repeat %d is not compared with %s", error, number, rival)
                continue
            if one is not None:
                found[number] = one
        return found

    def split(self, number: int) -> Split:
        """Who learns, chooses and judges in one repeat: the same for every way."""
        size, protocol = self.order.k, self.protocol
        draw = Draw(
            protocol=protocol, people=self._people, size=size, number=number,
            labels=self.cohort.labels[self.task.target_name],
            seed=seed_of_repeat(self.study.seed, self.site.name, protocol, size, number),
            secret=secret_number(self.cohort),
        )  # fmt: skip
        return draw.split()

    def is_told_apart(self, split: Split) -> bool:
        """Whether a repeat can say anything."""
        return tells_apart(self.task.target, self.cohort.labels[self.task.target_name], split)

    @cached_property
    def protocol(self) -> Protocol:
        """The study's protocol that the order is about, if the study asks for it in this way."""
        order, found = self.order, self.study.protocol(self.order.task)
        if found is None or order.k not in found.counts:
            raise Refusal(
                "ORDER_MALFORMED", f"the study has no protocol {order.task!r} of {order.k}"
            )
        if self._named not in self.study.task_of(found).methods:
            raise Refusal("ORDER_MALFORMED", f"{order.task} has no way {self._named}")
        return found

    @cached_property
    def task(self) -> Task:
        """The task whose ways are compared."""
        return task_of(self.study, self.study.task_of(self.protocol))

    @cached_property
    def _people(self) -> People:
        seen = self.site.role == "train"  # nobody of a held-out site is in any model
        return People.labelled(self.cohort, self.task.target_name, self.study.splits, seen=seen)

    @property
    def _named(self) -> str:
        return f"{self.order.init}/{self.order.method}" if self.order.init else self.order.method

    def _dealt(self) -> Repeats:
        """The same with labels dealt out anew, where the protocol asks for it."""
        if not self.protocol.shuffled:
            return self
        name = self.task.target_name
        seed = seed_of(self.study.seed, "shuffled", self.site.name, self.order.task)
        generator = np.random.default_rng([seed, secret_number(self.cohort)])
        label = shuffled(self.cohort.labels[name], self._people, generator)
        cohort = replace(self.cohort, labels={**self.cohort.labels, name: label})
        return replace(self, cohort=cohort)

    def _way(self, number: int) -> Way:
        return Way(
            study=self.study, site=self.site, cohort=self.cohort, order=self.order,
            task=self.task, arrays=self.arrays, again=number, features=self.features, told=False,
        )  # fmt: skip

    def _find(self, number: int) -> Repeat | None:
        try:
            return KeptRepeats(self.folder).find(self.order, number)
        except DamagedError as error:
            _log.error("%s; it is done again, to the same bits", error)
            return None
