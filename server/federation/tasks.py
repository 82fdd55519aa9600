"""What sites learn for themselves: fine-tuning tasks, what follows them, and protocols."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from common.arrays import Arrays
from common.comparisons import CLOSED_FORM, is_shared
from common.network.plan import Plan
from common.protocol.orders import Report
from common.protocol.wire import Stored
from common.runtime.progress import say
from common.sections import FineTuning
from server.federation.asking import Asking
from server.federation.parcel import on_base, together
from server.federation.starts import Start, Starts

_AFTERWARDS: Final = ("judge", "explain", "send", "cross")  # heads are sent before they are judged
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
                for kind in (kind for kind in _AFTERWARDS if kind in task.then):
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
        if kind == "cross":
            self._crossed(begun, more)
            return
        if kind == "explain" and more["method"] in CLOSED_FORM:
            return  # no network was tuned
        plan = self._plan(kind, task, more["method"])
        for repeat in range(task.repeats * (task.draws if more["k"] else 1)):
            self._tuned(kind, begun, {**more, "repeat": repeat}, plan)

    def _plan(self, kind: str, task: FineTuning, method: str) -> Plan:
        """What a site answers with; of a head only the site knows how many features it has."""
        if method in CLOSED_FORM:
            return {}
        from server.federation.initial import map_plan, tuned_plan

        study = self.asking.run.study
        return map_plan(study, task) if kind == "explain" else tuned_plan(study, task, method)

    def _crossed(self, begun: Mapping[str, Start], more: Mapping[str, Any]) -> None:
        """The heads that sites sent of a way, of its first draw, judged by every other site."""
        title = f"cross {_told(more['task'], more)}"
        if more["method"] not in CLOSED_FORM:
            return
        if not is_shared(more["init"], more["method"]):
            say(f"{title}: each stands on its site's own backbone, which no other site gets")
            return
        sent = self.asking.run.folder / "send" / more["task"] / f"{_way_of(more)}-repeat0"
        heads = heads_sent(sent, title)
        able = {site: one for site, one in begun.items() if heads.keys() - {site}}
        if not able:
            say(f"{title}: no site sent a head that another could judge")
            return
        named = {
            f"{site}/{name}": array for site, own in heads.items() for name, array in own.items()
        }
        parcel = on_base(named, next(iter(able.values())).parcel)
        self._tuned(
            "cross", {site: replace(one, parcel=parcel) for site, one in able.items()}, more
        )

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


def heads_sent(folder: Path, title: str) -> dict[str, Arrays]:
    """The heads in a folder of reports by site, those of the commonest number of features."""
    found = {path.stem: dict(Stored(path)) for path in sorted(folder.glob("*.safetensors"))}
    widths = {
        site: next(array.shape[0] for name, array in own.items() if name.endswith("/centre"))
        for site, own in found.items()
    }
    commonest = max(sorted(set(widths.values())), key=[*widths.values()].count, default=0)
    for site, width in widths.items():
        if width != commonest:
            say(f"{title}: the head of {site} is of {width} features, not {commonest}, and stays")
    return {site: own for site, own in found.items() if widths[site] == commonest}


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
