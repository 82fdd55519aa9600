"""The hospital's side of every order: check, work beside the data, let out what may leave.

An order that was answered before gets the same report from disk, without any work. Whatever goes
wrong becomes a code; the reason stays in the site's own log. Where a site keeps records, the cost
of an order is in them before the work begins, and whatever leaves before it leaves.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging import ERROR, WARNING, getLogger

import numpy as np
from numpy.typing import NDArray

from client.answer import Answer
from client.authority import spendings
from client.authority.admission import (
    TUNING,
    check_kind,
    check_model,
    check_role,
    check_start,
    check_sums,
)
from client.authority.approvals import approval_of, paused
from client.authority.differencing import FILE as CENSUSES
from client.authority.differencing import Censuses
from client.authority.egress import inspect
from client.authority.records import Records
from client.authority.spendings import Asked
from client.data.cohort import Cohort
from client.data.splits import pseudonyms, secret_of
from client.learning.census import (
    census,
    lacking_labels,
    overlap,
    settle,
    sum_labels,
    unlike_columns,
)
from client.learning.evaluation import Judge
from client.learning.harmonisation import harmonised
from client.learning.linear_rival import linear_models
from client.learning.pretraining import train_round
from client.learning.shortcuts import shortcut_sums
from client.learning.support import learnt_from, people_among, with_labels_for
from client.learning.training import choose_device
from client.secure_sums.peers import Peers, peers_of
from client.secure_sums.secrets import Safe
from client.secure_sums.summing import Summing
from client.service.assembling import Assembling
from client.service.built_network import built_network
from client.service.report_cache import ReportCache
from client.service.tuned_orders import TunedOrders
from client.site import Site
from common.arrays import Arrays, norm_of_difference
from common.comparisons import ENSEMBLE, brings_arrays
from common.errors import CallosumError, Refusal, SettingError, StorageError
from common.label_sums import BASELINES, CONSTANTS
from common.network.building import load_arrays
from common.network.settling import sent_to_settle
from common.protocol.orders import Order, Report, refuse
from common.runtime.durable import write_atomically
from common.secure_sums.numbers import row_of
from common.site_shortcuts import BEFORE
from common.site_shortcuts import MODELS as SHORTCUTS
from common.study import Study

_log = getLogger("callosum.site")
_MOST_COLUMNS = 10  # that are named in the log
_LEARNT = ("settle", "train", "linear", "send")  # kinds whose arrays are made of training people


@dataclass(frozen=True, slots=True)
class Agent:
    """One site, one approved study, its prepared data.

    `keeps_training` keeps trained arrays until the coordinator cannot ask for them again. The local
    engine goes without: its coordinator spools the same bytes to the same disk a moment later. It
    keeps no `records` either, since nothing leaves. `peers` are whom it sums with in secret there;
    a deployed site finds them in its kit.
    """

    site: Site
    study: Study
    cohort: Cohort
    keeps_training: bool = True
    records: Records | None = None
    peers: Peers | None = None

    def answer(self, order: Order, arrays: Arrays) -> tuple[Report, Arrays]:
        """Carry out `order`, or decline it with a code. Never raises for what an order holds."""
        try:
            self._check(order)
            earlier = self._earlier(order)
            if earlier is None:
                report, sent = self._worked(order, self._assembling(order).of(order, arrays))
            else:  # the policy may have become stricter since
                report, kept = earlier
                whole = self._assembling(order).of
                received = whole(order, arrays) if order.kind == "train" else {}
                report = inspect(order, self.site.policy, report, kept, received)
                report, sent = self._as_it_leaves(order, report, kept.arrays, received)
            return self._enter(order, report, sent), sent
        except Exception as error:  # noqa: BLE001  one order must never end the agent
            code = code_of(error)
            if isinstance(error, CallosumError):  # it says why itself
                level = WARNING if isinstance(error, Refusal) else ERROR
                _log.log(level, "%s: order %s: %s", self.site.name, order.kind, error)
            else:
                _log.exception("%s: order %s: %s", self.site.name, order.kind, code)
            return self._declined(order, code), {}

    def _earlier(self, order: Order) -> tuple[Report, Answer] | None:
        """The answer that was kept, unless it is another than the one that may leave."""
        kept = self._cache(order).report(order)
        if kept is None or self.records is None or self._masks(order):
            return kept  # what leaves under masks is compared with what left before
        report, answer = kept
        if self.records.contradict(order, report, answer.arrays):
            _log.error("the report kept for order %s is not the one that the ledger knows; the "
                       "order is worked on again", order.id)  # fmt: skip
            return None
        return kept

    def _worked(self, order: Order, arrays: Arrays) -> tuple[Report, Arrays]:
        """Pay for the order, carry it out, and keep what may leave of it.

        What a private order draws leaves only from the cache, where it is kept before anybody is
        told. Killed before that, the order may draw again at no further cost: nobody has seen the
        first draw. A code tells how it ended, so after one the next draw is paid for.
        """
        people = self._learners(order) if order.kind == "train" else 0
        asked = spendings.asked_of(self.study, self.site.policy, people) if people else None
        if self.records is not None:
            paid = self.records.spend(order, self.study.name, self.site.policy, asked)
            if asked is not None and not paid:
                _log.warning("%s: no answer to order %s was kept, and none left; it is drawn anew",
                             self.site.name, order.id)  # fmt: skip
        elif asked is not None:
            spendings.check(spendings.before(self.study, order, asked), order.study, asked)
        try:
            return self._carried_out(order, arrays, asked)
        except Exception:
            if asked is not None and self.records is not None:
                self.records.ledger.see(order.id)
            raise

    def _carried_out(
        self, order: Order, arrays: Arrays, asked: Asked | None
    ) -> tuple[Report, Arrays]:
        began = time.monotonic()
        answer = self._work(order, arrays)
        report = Report(
            order=order.id,
            site=self.site.name,
            kind=order.kind,
            round=order.round,
            cohort=self.cohort.fingerprint if order.kind == "census" else "",
            cost=asked.cost if asked is not None else None,
            holds=self._assembling(order).held(order),
            seconds=time.monotonic() - began,
        )
        report = inspect(order, self.site.policy, report, answer, arrays)
        if order.kind != "train":
            self._cache(order).keep(order, report, answer)
        elif self.keeps_training:
            moved = norm_of_difference(answer.arrays, arrays)
            self._cache(order).keep(order, report, answer, moved)
        return self._as_it_leaves(order, report, answer.arrays, arrays)

    def _masks(self, order: Order) -> bool:
        """Whether an answer leaves under masks: in a study of secure sums, every trained array."""
        return order.kind == "train" and self.study.secure_sums.on

    def _as_it_leaves(
        self, order: Order, report: Report, sent: Arrays, received: Arrays
    ) -> tuple[Report, Arrays]:
        """An answer that has passed the gate, under masks where the study sums in secret."""
        if not self._masks(order):
            return report, sent
        return self._summing(order).masked(order, report, sent, received)

    def _summing(self, order: Order) -> Summing:
        if not self.study.secure_sums.on:
            raise Refusal("ORDER_MALFORMED", f"{self.study.name} has no secure sums")
        network, plan = built_network(self.study)
        row = row_of(self.study, plan, tuple(network.weights))
        return Summing(
            site=self.site, study=self.study, plan=plan, row=row, peers=self._peers(),
            safe=Safe(self.site.state, order.run),
        )  # fmt: skip

    def _peers(self) -> Peers:
        """Whom this site sums with in secret: in a deployment, whom a person here agreed to."""
        if self.peers is not None:
            return self.peers
        try:
            peers = peers_of(self.site)
            number = peers.number(self.study.sites.train)
        except SettingError as error:
            raise Refusal("PEERS", str(error)) from None
        approval = approval_of(self.site, self.study.digest)
        if approval is None or approval.peers != number:
            agreed = approval.peers if approval is not None else "none"
            raise Refusal(
                "PEERS",
                f"the number of the peers is {number}, agreed to was {agreed}; compare it with the "
                "other sites, and approve the study again",
            )
        return peers

    def _enter(self, order: Order, report: Report, sent: Arrays) -> Report:
        """Enter into the records what is about to leave, unless somebody has paused the site."""
        if self.records is None:
            return report
        if paused(self.site) is not None:
            raise Refusal("PAUSED", "the answer is kept until the same order is sent again")
        return self.records.depart(order, self.study.name, report, sent)

    def _declined(self, order: Order, code: str) -> Report:
        report = refuse(order, code)
        if self.records is not None:
            try:
                self.records.decline(order, self.study.name, report)
            except Exception:  # noqa: BLE001  a full disk, say; the coordinator must hear that much
                _log.exception("%s: %s leaves without a receipt", self.site.name, code)
        return report

    def _check(self, order: Order) -> None:
        """Cheap checks before any heavy work."""
        if order.site != self.site.name:
            raise Refusal("ORDER_MALFORMED", f"the order is for {order.site}")
        if order.study != self.study.digest:
            raise Refusal("STUDY_UNKNOWN")
        check_role(self.site, self.study, order)
        check_kind(self.site, order)
        check_sums(self.site, self.study, order)
        check_model(self.study, order)
        people = len(set(self.cohort.participants))
        if people == 0:
            raise Refusal("NO_DATA")
        if order.kind in _LEARNT:  # what leaves is of those alone who trained
            people = people_among(self.cohort, self.cohort.indices("train", self.study.splits))
        if people < self.site.policy.minimum_cohort:
            raise Refusal("COHORT_TOO_SMALL", f"{people} participants")
        check_start(self.site, self.study, self.cohort.fingerprint)

    def _learners(self, order: Order) -> int:
        """How many people are learnt from; nobody, or too few, are refused before they are charged.

        Everybody who enters a loss is drawn at the same rate, so their number is what a private
        round costs by.
        """
        policy = self.site.policy
        cohort = with_labels_for(self.study, self.cohort, order.model)
        people = people_among(cohort, learnt_from(self.study, cohort, policy.minimum_support)[1])
        if people == 0:
            raise Refusal("NO_DATA", lacking_labels(self.study, self.site, cohort))
        if people < policy.minimum_cohort:
            raise Refusal("COHORT_TOO_SMALL", f"{people} participants with a label that is learnt")
        return people

    def _cache(self, order: Order) -> ReportCache:
        return ReportCache(self.site.state / "runs" / order.run[:16])

    def _assembling(self, order: Order) -> Assembling:
        return Assembling(
            site=self.site, study=self.study, cache=self._cache(order),
            keeps_training=self.keeps_training,
        )  # fmt: skip

    def _work(self, order: Order, arrays: Arrays) -> Answer:
        if order.kind in TUNING:
            if brings_arrays(order.init):
                arrays = {**arrays, **self._cache(order).own_arrays(order.model)}
            orders = TunedOrders(
                site=self.site, study=self.study, cohort=self._harmonised(arrays),
                folder=self._cache(order).folder,
            )  # fmt: skip
            return orders.answer(order, arrays)
        work: dict[str, Callable[[], Answer]] = {
            "census": self._census,
            "overlap": self._overlap,
            "settle": lambda: self._settle(order, arrays),
            "train": lambda: self._train(order, arrays),
            "evaluate": lambda: self._evaluate(order, arrays),
            "linear": lambda: linear_models(self.study, self.cohort),
            "keys": lambda: self._summing(order).keys(order),
            "shares": lambda: self._summing(order).shares(order, arrays),
            "unmask": lambda: self._summing(order).unmask(order, arrays),
        }
        return work[order.kind]()

    def _admit_people(self) -> None:
        """Enter a count of all people, unless a few of them came or went since an earlier one."""
        if self.records is not None:  # else nothing leaves
            people = frozenset(pseudonyms(self.cohort.participants, secret_of(self.site)))
            censuses = Censuses(self.site.state / CENSUSES)
            censuses.admit(people, self.site.policy.minimum_support)

    def _census(self) -> Answer:
        self._admit_people()
        if lacking := lacking_labels(self.study, self.site, self.cohort):
            _log.warning("%s: %s", self.site.name, lacking)
        return census(self.study, self.site, self.cohort)

    def _overlap(self) -> Answer:
        self._admit_people()  # tokens are a count, too
        return overlap(self.study, self.site, self.cohort, leaves=self.records is not None)

    def _train(self, order: Order, arrays: Arrays) -> Answer:
        network, plan = built_network(self.study)
        cache = self._cache(order)
        self._compare_columns(order, arrays, self.cohort.indices("train", self.study.splits))
        cohort = with_labels_for(self.study, self._harmonised(arrays), order.model)
        done = train_round(
            self.study.as_trained(order.model), self.site, cohort, order,
            network=network, plan=plan,
            arrays={**arrays, **cache.own_arrays(order.model, before=order.round)},
            moments=cache.moments(order.model, before=order.round),
        )  # fmt: skip
        cache.keep_own(order, done.own)
        cache.keep_moments(order, done.moments)
        return done.answer

    def _compare_columns(self, order: Order, arrays: Arrays, indices: NDArray[np.int64]) -> None:
        """Warn, once a run, of columns that count in another unit than all training sites'."""
        told = self._cache(order).folder / "columns.txt"
        if order.model != "federated" or told.exists():
            return
        network, _ = built_network(self.study)
        found = list(unlike_columns(self.study, self.cohort, indices, network, arrays))
        for text in found[:_MOST_COLUMNS]:
            _log.warning("%s: %s", self.site.name, text)
        if len(found) > _MOST_COLUMNS:
            more = len(found) - _MOST_COLUMNS
            _log.warning("%s: and %d more columns are unlike the others'", self.site.name, more)
        write_atomically(told, "\n".join(found).encode())

    def _harmonised(self, arrays: Arrays) -> Cohort:
        """The training site's columns as the model of these arrays is to see them."""
        network, _ = built_network(self.study)
        return harmonised(self.study, self.site.policy, self.cohort, network, arrays)

    def _settle(self, order: Order, arrays: Arrays) -> Answer:
        if order.model == BASELINES:
            return sum_labels(self.study, self.site, self.cohort)
        network, plan = built_network(self.study)
        if order.model in SHORTCUTS:
            return self._shortcuts(order, arrays)
        if set(arrays) != sent_to_settle(network, plan):
            raise Refusal("ORDER_MALFORMED", "the arrays are not those that constants are made by")
        if set(arrays) == set(plan):
            self._assembling(order).check_first(arrays, self.study.as_trained(order.model))
        load_arrays(network, arrays)
        device = choose_device(self.site.device.kind)
        cohort = self._harmonised(arrays)
        return settle(self.study, self.site, cohort, network, order.round, device)

    def _shortcuts(self, order: Order, arrays: Arrays) -> Answer:
        """Sums of features by weights as drawn or as trained; crafted ones would single out."""
        study, site = self.study, self.site
        if order.round > 1:
            raise Refusal("ORDER_MALFORMED", f"there are two such sums, not number {order.round}")
        if order.model == BEFORE or not study.pretraining.rounds:
            self._assembling(order).check_first(arrays, study)
        else:
            of_model = order.model_copy(update={"model": "federated"})
            self._assembling(order).check_origin(of_model, arrays)
        network, _ = built_network(study)
        cohort = self.cohort if order.model == BEFORE else self._harmonised(arrays)
        own = {} if order.model == BEFORE else self._cache(order).own_arrays("federated")
        load_arrays(network, {**arrays, **own})
        device = choose_device(site.device.kind)
        return shortcut_sums(study, site, cohort, network, order.round, device)

    def _evaluate(self, order: Order, arrays: Arrays) -> Answer:
        judge = Judge(self.study, self.site, self.cohort, order, self._cache(order).folder)
        if order.model.endswith("-linear"):
            return judge.linear(arrays)
        if order.model in CONSTANTS:
            return judge.constants(arrays)
        if order.model == ENSEMBLE:
            return judge.ensemble()
        network, _ = built_network(self.study)
        self._compare_columns(order, arrays, np.arange(len(self.cohort)))
        load_arrays(network, {**arrays, **self._cache(order).own_arrays(order.model)})
        answer = judge.network(network)
        self._cache(order).note_judged(order)
        return answer


def code_of(error: Exception) -> str:
    """What may be said about an error: a code, never its text."""
    if isinstance(error, Refusal):
        return error.code
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "DISK_FULL" if full or isinstance(error, StorageError) else "SITE_FAILED"
