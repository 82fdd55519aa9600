"""What sites learn for themselves: fine-tuning tasks, what follows them, and protocols."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.network.plan import Plan
from common.protocol.orders import Report
from common.runtime.progress import say
from common.sections import FineTuning
from server.federation.asking import Asking
from server.federation.parcel import together
from server.federation.starts import Start, Starts

_FOLDERS: Final = {"finetune": "finetuning", "protocol": "protocols"}


@dataclass(frozen=True, slots=True)
class Tasks:
    """Asks sites for every task and protocol of the study."""

    asking: Asking

    def finetune(self, sites: Sequence[str], census: Mapping[str, Report]) -> None:
        """Each task at each training site that has its labels, by each of the study's methods."""
        study = self.asking.run.study
        starts = Starts(self.asking.run)
        for task in (task for task in study.finetuning if task.repeats):
            able = self._with_labels(task.target, sites, census, f"fine-tuning {task.name}")
            for named in ways_of(task):
                more = {**named, "task": task.name}
                compared = {**more, "against": _before(task, named)}
                begun = starts.of(named["init"], able, _told(task.name, named))
                self._tuned("finetune", begun, compared)
                for kind in task.then:
                    asked = compared if kind == "judge" else more
                    self._afterwards(kind, begun, task, asked)

    def compare(self, sites: Sequence[str], census: Mapping[str, Report], role: str) -> None:
        """Each protocol of a role at each of `sites` that has its labels: an order a way and size.

        What a held-out site learns of its own people, it measures; it sends nothing else.
        """
        study = self.asking.run.study
        starts = Starts(self.asking.run)
        for protocol in study.protocols_at(role):
            task = study.task_of(protocol)
            able = self._with_labels(task.target, sites, census, f"protocol {protocol.name}")
            for size, way in itertools.product(protocol.counts, task.methods):
                init, _, method = way.rpartition("/")
                named = {"init": init, "method": method, "k": size}
                begun = starts.of(init, able, _told(protocol.name, named))
                more = {"task": protocol.name, "against": _before(task, named)}
                self._tuned("protocol", begun, {**named, **more})

    def _with_labels(
        self, target: str, sites: Sequence[str], census: Mapping[str, Report], title: str
    ) -> list[str]:
        """Those of `sites` that hold labels of a target; the others are named."""
        able = [site for site in sites if census[site].support.get(f"labels/{target}", 0)]
        lacking = ", ".join(site for site in sites if site not in able)
        if lacking:
            say(f"{title}: no labels of {target} at {lacking}")
        return able

    def _afterwards(
        self,
        kind: str,
        begun: Mapping[str, Start],
        task: FineTuning,
        more: Mapping[str, Any],
    ) -> None:
        """Judge the tuned models that sites keep, have them explained, or sent."""
        if kind == "judge":
            self._tuned(kind, begun, more)
            return
        if more["method"] in ("frozen", "linear"):
            return  # no network was tuned
        from server.federation.initial import map_plan, tuned_plan

        study = self.asking.run.study
        plan = (
            map_plan(study, task) if kind == "explain" else tuned_plan(study, task, more["method"])
        )
        for repeat in range(task.repeats * (task.draws if more["k"] else 1)):
            self._tuned(kind, begun, {**more, "repeat": repeat}, plan)

    def _tuned(
        self,
        kind: str,
        begun: Mapping[str, Start],
        more: Mapping[str, Any],
        plan: Plan | None = None,
    ) -> None:
        """One order for each site, about the arrays that the site begins from."""
        if not begun:
            return
        orders = [
            order
            for site, start in begun.items()
            for order in self.asking.orders(
                kind, [site], start.parcel, model=start.model, lineage=start.lineage, **more
            )
        ]
        folder = self.asking.run.folder / _FOLDERS.get(kind, kind) / more["task"]
        repeat = f"-repeat{more['repeat']}" if "repeat" in more else ""
        told = _told(("fine-tuning " if kind == "finetune" else f"{kind} ") + more["task"], more)
        self.asking.ask(
            orders,
            together([start.parcel for start in begun.values()]),
            folder / f"{_way_of(more)}{repeat}",
            plan or {},
            f"{told}{repeat}: sites",
        )


def ways_of(task: FineTuning) -> Iterator[dict[str, Any]]:
    """Start, method and number of people of every comparison that a task asks for."""
    for way in task.methods:
        init, _, method = way.rpartition("/")
        for k in task.participants or (0,):
            yield {"init": init, "method": method, "k": k}


def _before(task: FineTuning, way: Mapping[str, Any]) -> tuple[str, ...]:
    """The task's methods that come before one: it is compared with each, person by person."""
    names = [_named(*one.rpartition("/")[::2]) for one in task.methods]
    return tuple(names[: names.index(_named(way["init"], way["method"]))])


def _told(task: str, way: Mapping[str, Any]) -> str:
    """`fine-tuning dementia, pretrained-full-k10`."""
    return f"{task}, {_way_of(way)}"


def _way_of(way: Mapping[str, Any]) -> str:
    return _named(way["init"], way["method"]) + (f"-k{way['k']}" if way["k"] else "")


def _named(init: str, method: str) -> str:
    return "-".join(part for part in (init, method) if part)
