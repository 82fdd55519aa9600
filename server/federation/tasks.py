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
from server.checkpoints import load_checkpoint
from server.federation.asking import Asking
from server.federation.parcel import NOTHING, Parcel, parcel_of

_FOLDERS: Final = {"finetune": "finetuning", "protocol": "protocols"}


@dataclass(frozen=True, slots=True)
class Tasks:
    """Asks training sites for every task and protocol of the study."""

    asking: Asking

    def finetune(self, sites: Sequence[str], census: Mapping[str, Report]) -> None:
        """Each task at each training site that has its labels, by each of the study's methods."""
        study, branch = self.asking.run.study, self.asking.run.federated
        if not study.finetuning:
            return
        final = load_checkpoint(branch.final, study)
        parcel = parcel_of(final.arrays, branch.plan(study))
        for task in (task for task in study.finetuning if task.repeats):
            able = self._with_labels(task.target, sites, census, f"fine-tuning {task.name}")
            for named in ways_of(task):
                more = {**named, "task": task.name, "lineage": final.lineage.contributors}
                compared = {**more, "against": _before(task, named)}
                self._tuned("finetune", able, parcel, compared)
                for kind in task.then:
                    asked = compared if kind == "judge" else more
                    self._afterwards(kind, able, parcel, task, asked)

    def compare(self, sites: Sequence[str], census: Mapping[str, Report]) -> None:
        """Each protocol at each training site that has its labels: an order a way and size."""
        study, branch = self.asking.run.study, self.asking.run.federated
        if not study.protocols:
            return
        final = load_checkpoint(branch.final, study)
        parcel = parcel_of(final.arrays, branch.plan(study))
        for protocol in study.protocols:
            task = study.task_of(protocol)
            able = self._with_labels(task.target, sites, census, f"protocol {protocol.name}")
            for size, way in itertools.product(protocol.counts, task.methods):
                init, _, method = way.rpartition("/")
                more = {
                    "task": protocol.name, "init": init, "method": method, "k": size,
                    "lineage": final.lineage.contributors,
                    "against": _before(task, {"init": init, "method": method}),
                }  # fmt: skip
                self._tuned("protocol", able, parcel, more)

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
        sites: Sequence[str],
        parcel: Parcel,
        task: FineTuning,
        more: Mapping[str, Any],
    ) -> None:
        """Judge the tuned models that sites keep, have them explained, or sent."""
        if kind == "judge":
            self._tuned(kind, sites, parcel, more)
            return
        if more["method"] in ("frozen", "linear"):
            return  # no network was tuned
        from server.federation.initial import map_plan, tuned_plan

        study = self.asking.run.study
        plan = (
            map_plan(study, task) if kind == "explain" else tuned_plan(study, task, more["method"])
        )
        for repeat in range(task.repeats * (task.draws if more["k"] else 1)):
            self._tuned(kind, sites, parcel, {**more, "repeat": repeat}, plan)

    def _tuned(
        self,
        kind: str,
        sites: Sequence[str],
        parcel: Parcel,
        more: Mapping[str, Any],
        plan: Plan | None = None,
    ) -> None:
        carried = parcel if more["init"] == "pretrained" else NOTHING
        orders = self.asking.orders(kind, sites, carried, **more)
        name = _named(more["init"], more["method"])
        name += f"-k{more['k']}" if more["k"] else ""
        name += f"-repeat{more['repeat']}" if "repeat" in more else ""
        folder = self.asking.run.folder / _FOLDERS.get(kind, kind) / more["task"]
        verb = "fine-tuning" if kind == "finetune" else kind
        self.asking.ask(
            orders, carried, folder / name, plan or {}, f"{verb} {more['task']}, {name}: sites"
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


def _named(init: str, method: str) -> str:
    return "-".join(part for part in (init, method) if part)
