"""The hospital's side of every order: check, work beside the data, let out what may leave.

An order that was answered before gets the same report from disk, without any work. Whatever goes
wrong becomes a code; the reason stays in the site's own log. Where a site keeps records, the cost
of an order is in them before the work begins, and whatever leaves before it leaves.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from functools import lru_cache
from logging import getLogger
from typing import Any

import numpy as np

from client.authority.admission import check_kind, check_role
from client.authority.approvals import paused
from client.authority.egress import inspect
from client.authority.records import Records
from client.data.cohort import Cohort
from client.learning.evaluation import Judge
from client.learning.finetuning import finetune
from client.learning.linear import choose, fit, regional_features
from client.learning.training import choose_device, learning_rate, train, validation_counts
from client.service.report_cache import ReportCache
from client.site import Site
from common.arrays import Arrays
from common.errors import Refusal, StorageError
from common.network import arrays_of, build, load_arrays, plan_of
from common.plan import Plan
from common.protocol.orders import Order, Report, digest_of, refuse
from common.seams import LABELS, SCANS
from common.seeding import seed_of
from common.study import Study

_log = getLogger("callosum.site")


@lru_cache(maxsize=2)
def _network(study: Study) -> tuple[Any, Plan]:
    """The study's network, built once in a process; every order loads all of its arrays anew."""
    network = build(study, seed=0)
    return network, plan_of(network, study.aggregation.normalisation)


@dataclass(frozen=True, slots=True)
class Agent:
    """One site, one approved study, its prepared data.

    `keeps_training` keeps trained arrays until the coordinator cannot ask for them again. The local
    engine goes without: its coordinator spools the same bytes to the same disk a moment later. It
    keeps no `records` either, since nothing leaves.
    """

    site: Site
    study: Study
    cohort: Cohort
    keeps_training: bool = True
    records: Records | None = None

    def answer(self, order: Order, arrays: Arrays) -> tuple[Report, Arrays]:
        """Carry out `order`, or decline it with a code. Never raises for what an order holds."""
        try:
            self._check(order, arrays)
            earlier = self._kept(order).report(order)
            report, sent = earlier or self._worked(order, arrays)
            if earlier is not None:  # the policy may have become stricter since
                report = self._inspected(order, arrays, report, sent)
            self._enter(order, report, sent)
            return report, sent
        except Exception as error:  # noqa: BLE001  one order must never end the agent
            code = code_of(error)
            if isinstance(error, Refusal):  # it says why itself
                _log.warning("%s: order %s: %s", self.site.name, order.kind, error)
            else:
                _log.exception("%s: order %s: %s", self.site.name, order.kind, code)
            return self._declined(order, code), {}

    def _worked(self, order: Order, arrays: Arrays) -> tuple[Report, Arrays]:
        """Pay for the order, carry it out, and keep what may leave of it."""
        self._check_arrays(order, arrays)
        if self.records is not None:
            self.records.spend(order, self.study.name, self.site.policy.most_exposures)
        began = time.monotonic()
        report, sent = self._work(order, arrays)
        report = report.model_copy(update={"seconds": time.monotonic() - began})
        report = self._inspected(order, arrays, report, sent)
        if self.keeps_training or order.kind != "train":
            self._kept(order).keep(order, report, sent)
        return report, sent

    def _inspected(self, order: Order, arrays: Arrays, report: Report, sent: Arrays) -> Report:
        _, plan = _network(self.study)
        return inspect(self.study, order, plan, self.site.policy, report, sent, arrays)

    def _enter(self, order: Order, report: Report, sent: Arrays) -> None:
        """Enter into the records what is about to leave, unless somebody has paused the site."""
        if self.records is None:
            return
        if paused(self.site) is not None:
            raise Refusal("PAUSED", "the answer is kept until the same order is sent again")
        self.records.depart(order, self.study.name, report, sent)

    def _declined(self, order: Order, code: str) -> Report:
        report = refuse(order, code)
        if self.records is not None:
            try:
                self.records.decline(order, self.study.name, report)
            except Exception:  # noqa: BLE001  a full disk, say; the coordinator must hear that much
                _log.exception("%s: %s leaves without a receipt", self.site.name, code)
        return report

    def _check(self, order: Order, arrays: Arrays) -> None:
        """Cheap checks before any heavy work."""
        if order.site != self.site.name or order.arrays != digest_of(arrays):
            raise Refusal("ORDER_MALFORMED", "the order is not for this site or arrays")
        if order.study != self.study.digest:
            raise Refusal("STUDY_UNKNOWN")
        check_role(self.site, order)
        check_kind(self.site, order)
        people = len(set(self.cohort.participants))
        if people == 0:
            raise Refusal("NO_DATA")
        if people < self.site.policy.minimum_cohort:
            raise Refusal("COHORT_TOO_SMALL", f"{people} participants")

    def _check_arrays(self, order: Order, arrays: Arrays) -> None:
        """Refuse arrays that leave some of the network as an earlier order left it."""
        if order.kind in ("census", "linear") or order.model.endswith("-linear"):
            return
        _, plan = _network(self.study)
        if set(arrays) != set(plan):
            raise Refusal("ORDER_MALFORMED", "the arrays are not the study's network")

    def _kept(self, order: Order) -> ReportCache:
        return ReportCache(self.site.state / "runs" / order.run[:16])

    def _work(self, order: Order, arrays: Arrays) -> tuple[Report, Arrays]:
        if order.kind == "census":
            return self._census(order)
        if order.kind == "train":
            return self._train(order, arrays)
        if order.kind == "linear":
            return self._report(order), self._linear()
        network, _ = _network(self.study)
        personal = {**arrays, **self._kept(order).own_arrays(order.model)}
        if order.kind == "finetune":
            rows = finetune(self.study, self.site, self.cohort, order, personal)
        else:
            judge = Judge(self.study, self.site, self.cohort, order, self._kept(order).folder)
            if order.model.endswith("-linear"):
                rows, counts = judge.linear(arrays)
            else:
                load_arrays(network, personal)
                rows, counts = judge.network(network)
            return self._report(order, measurements=tuple(rows), counts=counts), {}
        return self._report(order, measurements=tuple(rows)), {}

    def _census(self, order: Order) -> tuple[Report, Arrays]:
        """Counts of scans and labels; for tables also the columns' sums over who trains."""
        training = self.cohort.indices("train", self.study.splits)
        counts, sent = {}, {}
        if self.site.role == "train":
            if len(training) < 2:
                raise Refusal("NO_DATA", f"{len(training)} training samples")
            counts = self._label_sums(training)
            if self.study.layout == "table":
                columns = np.asarray(self.cohort.samples[training], dtype=np.float64)
                sent = {
                    "columns/sum": columns.sum(0),
                    "columns/squares": (columns**2).sum(0),
                    "columns/n": np.array([float(len(columns))]),
                }
        support = self._support(np.arange(len(self.cohort.participants)), list(self.study.targets))
        return self._report(order, support=support, counts=counts), sent

    def _train(self, order: Order, arrays: Arrays) -> tuple[Report, Arrays]:
        """One round: judge the arrays as they came on validation participants, then train them."""
        study, settings = self.study, self.study.pretraining
        network, plan = _network(study)
        kept = self._kept(order)
        own = kept.own_arrays(order.model, before=order.round)
        load_arrays(network, {**arrays, **own})
        device = choose_device(self.site.device.kind)
        training = self.cohort.indices("train", study.splits)
        validation = self.cohort.indices("validation", study.splits)
        counts = validation_counts(network, self.cohort, validation, study.targets, device)
        losses = train(
            network,
            self.cohort,
            training,
            settings,
            epochs=settings.local_epochs,
            batch_size=settings.batch_size,
            rate=learning_rate(settings, order.round),
            seed=seed_of(study.seed, "train", self.site.name, order.round),
            device=device,
        )
        trained = arrays_of(network)
        kept.keep_own(order, {name: trained[name] for name, rule in plan.items() if rule.kept})
        sent = {name: trained[name] for name, rule in plan.items() if rule.travels}
        names = list(study.pretraining_targets)
        groups = {rule.group for rule in plan.values() if rule.travels} | {SCANS}
        support = {
            group: n for group, n in self._support(training, names).items() if group in groups
        }
        return self._report(order, support=support, counts=counts | losses.counts()), sent

    def _linear(self) -> Arrays:
        """Penalised linear models of all pretraining targets; validation participants choose."""
        study, features = self.study, regional_features(self.cohort)
        sent: Arrays = {}
        for name, target in study.pretraining_targets.items():
            label = self.cohort.labels[name]
            parts = [self.cohort.indices(split, study.splits) for split in ("train", "validation")]
            fitted, held = (part[~np.isnan(label[part])] for part in parts)
            if len(fitted) < 2 or (target.kind != "regression" and len(set(label[fitted])) < 2):
                continue
            strength = choose(target, features, label, [(fitted, held)]) if len(held) else 1.0
            sent |= fit(target, features, label, fitted, strength).arrays(name)
        return sent

    def _support(self, indices: np.ndarray[Any, Any], targets: list[str]) -> dict[str, int]:
        labels = {
            f"{LABELS}{name}": int((~np.isnan(self.cohort.labels[name][indices])).sum())
            for name in targets
        }
        return {SCANS: len(indices), **labels}

    def _label_sums(self, indices: np.ndarray[Any, Any]) -> dict[str, tuple[float, ...]]:
        """(n, sum) of each target's labels, where enough participants stand behind them."""
        found: dict[str, tuple[float, ...]] = {}
        for name in self.study.targets:
            labelled = indices[~np.isnan(self.cohort.labels[name][indices])]
            known = self.cohort.labels[name][labelled]
            people = {self.cohort.participants[index] for index in labelled}
            if len(people) >= self.site.policy.minimum_support:
                found[f"label/{name}"] = (float(len(known)), float(known.sum(dtype=np.float64)))
        return found

    def _report(self, order: Order, **content: Any) -> Report:
        return Report(
            order=order.id,
            site=self.site.name,
            kind=order.kind,
            round=order.round,
            cohort=self.cohort.fingerprint if order.kind == "census" else "",
            **content,
        )


def code_of(error: Exception) -> str:
    """What may be said about an error: a code, never its text."""
    if isinstance(error, Refusal):
        return error.code
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "DISK_FULL" if full or isinstance(error, StorageError) else "SITE_FAILED"
