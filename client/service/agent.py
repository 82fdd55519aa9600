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
from logging import ERROR, WARNING, getLogger
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.answer import Answer
from client.authority.admission import check_kind, check_model, check_role, check_start
from client.authority.approvals import paused
from client.authority.differencing import FILE as CENSUSES
from client.authority.differencing import Censuses
from client.authority.egress import inspect
from client.authority.records import Records
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
from client.learning.explanation import explained
from client.learning.finetuning import Tuning
from client.learning.harmonisation import harmonised
from client.learning.linear import choose, fit, regional_features
from client.learning.measurement import means
from client.learning.pretraining import train_round
from client.learning.protocols import Repeats
from client.learning.shortcuts import shortcut_sums
from client.learning.support import learnt_from, people_among
from client.learning.training import choose_device
from client.learning.tuned_models import TunedModels
from client.service.array_store import ArrayStore
from client.service.continuity import check_first, check_follows, check_joined
from client.service.report_cache import ReportCache
from client.site import Site
from common.arrays import Arrays, norm_of_difference
from common.errors import CallosumError, Refusal, StorageError
from common.label_sums import BASELINES, CONSTANTS
from common.network.building import arrays_of, build, load_arrays, plan_of
from common.network.plan import Plan, rules_of
from common.network.settling import sent_to_settle
from common.network.starting import taken
from common.network.tuning import tuned_arrays
from common.protocol.orders import EMPTY, Order, Report, digest_of, refuse
from common.runtime.durable import write_atomically
from common.seeding import seed_of
from common.site_shortcuts import BEFORE
from common.site_shortcuts import MODELS as SHORTCUTS
from common.study import Study

_log = getLogger("callosum.site")
_MOST_COLUMNS = 10  # that are named in the log
_TUNED = (
    "finetune",
    "protocol",
    "judge",
    "explain",
    "send",
)  # kinds of order about a site's own tuned models
_LEARNT = ("settle", "train", "linear", "send")  # kinds whose arrays are made of training people


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
            self._check(order)
            earlier = self._earlier(order)
            if earlier is None:
                report, sent = self._worked(order, self._assembled(order, arrays))
            else:  # the policy may have become stricter since
                report, kept = earlier
                received = self._assembled(order, arrays) if order.kind == "train" else {}
                report, sent = inspect(order, self.site.policy, report, kept, received), kept.arrays
            return self._enter(order, report, sent), sent
        except Exception as error:  # noqa: BLE001  one order must never end the agent
            code = code_of(error)
            if isinstance(error, CallosumError):  # it says why itself
                level = WARNING if isinstance(error, Refusal) else ERROR
                _log.log(level, "%s: order %s: %s", self.site.name, order.kind, error)
            else:
                _log.exception("%s: order %s: %s", self.site.name, order.kind, code)
            return self._declined(order, code), {}

    def _check_undrawn(self, order: Order) -> None:
        """Refuse to draw a private round anew whose answer left: it would be a second release.

        A drawing that was paid for and never kept, because the agent was killed, left nothing: what
        leaves is kept and entered first. It may be drawn again.
        """
        private = order.kind == "train" and self.study.privacy.is_private
        if self.records is None or not private:
            return
        if self.records.ledger.answer(order.id) is not None:
            raise Refusal(
                "SITE_FAILED",
                "the answer that left is no longer kept here, and private training gives no bits "
                "twice; the run goes on without this site's part of the round",
            )
        if self.records.ledger.is_spent(order.id):
            _log.warning("%s: no answer to order %s was kept, and none left; it is drawn anew",
                         self.site.name, order.id)  # fmt: skip

    def _earlier(self, order: Order) -> tuple[Report, Answer] | None:
        """The answer that was kept, unless it is another than the one that may leave."""
        kept = self._cache(order).report(order)
        if kept is not None and self.records is not None:
            report, answer = kept
            if self.records.contradict(order, report, answer.arrays):
                _log.error("the report kept for order %s is not the one that the ledger knows; the "
                           "order is worked on again", order.id)  # fmt: skip
                kept = None
        if kept is None:
            self._check_undrawn(order)
        return kept

    def _worked(self, order: Order, arrays: Arrays) -> tuple[Report, Arrays]:
        """Pay for the order, carry it out, and keep what may leave of it."""
        if order.kind == "train":
            self._check_labels()
        if self.records is not None:
            self.records.spend(order, self.study.name, self.site.policy)
        began = time.monotonic()
        answer = self._work(order, arrays)
        report = Report(
            order=order.id,
            site=self.site.name,
            kind=order.kind,
            round=order.round,
            cohort=self.cohort.fingerprint if order.kind == "census" else "",
            holds=self._held(order),
            seconds=time.monotonic() - began,
        )
        report = inspect(order, self.site.policy, report, answer, arrays)
        if order.kind != "train":
            self._cache(order).keep(order, report, answer)
        elif self.keeps_training:
            moved = norm_of_difference(answer.arrays, arrays)
            self._cache(order).keep(order, report, answer, moved)
        return report, answer.arrays

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
        check_role(self.site, order)
        check_kind(self.site, order)
        check_model(self.study, order)
        people = len(set(self.cohort.participants))
        if people == 0:
            raise Refusal("NO_DATA")
        if order.kind in _LEARNT:  # what leaves is of those alone who trained
            people = people_among(self.cohort, self.cohort.indices("train", self.study.splits))
        if people < self.site.policy.minimum_cohort:
            raise Refusal("COHORT_TOO_SMALL", f"{people} participants")
        check_start(self.site, self.study, self.cohort.fingerprint)

    def _check_labels(self) -> None:
        """Refuse to train on nobody, or on too few, before the ledger is charged for it."""
        policy = self.site.policy
        people = people_among(
            self.cohort, learnt_from(self.study, self.cohort, policy.minimum_support)[1]
        )
        if people == 0:
            raise Refusal("NO_DATA", lacking_labels(self.study, self.site, self.cohort))
        if people < policy.minimum_cohort:
            raise Refusal("COHORT_TOO_SMALL", f"{people} participants with a label that is learnt")

    def _assembled(self, order: Order, sent: Arrays) -> Arrays:
        """All arrays that the order is about: those that came with it, and those held here.

        Raises
        ------
        Refusal
            NEEDS_ARRAYS if some are neither; ORDER_MALFORMED if they are not the ones it names.
        """
        of_network = (
            order.kind in ("train", *_TUNED)
            or order.model in SHORTCUTS
            or (
                order.kind == "evaluate"
                and not order.model.endswith("-linear")
                and order.model not in CONSTANTS
            )
        )
        plan = _network(self.study)[1] if of_network else {}
        static = {name for name, rule in plan.items() if not rule.travels}
        base = {name: array for name, array in sent.items() if name in static}
        moving = {name: array for name, array in sent.items() if name not in static}
        whole = {
            **self._set(order.base or EMPTY, base, keep=True),
            **self._set(order.arrays, moving, keep=order.kind in _TUNED),
        }
        from_nothing = order.kind in _TUNED and order.init != "pretrained"
        if of_network and not from_nothing and set(whole) != set(plan):
            raise Refusal("ORDER_MALFORMED", "the arrays are not the study's network")
        if order.kind == "train" or order.init == "pretrained":
            self._check_origin(order, whole)
        return whole

    def _set(self, digest: str, sent: Arrays, *, keep: bool) -> Arrays:
        if digest == EMPTY or sent:
            if digest_of(sent) != digest:
                raise Refusal("ORDER_MALFORMED", "the arrays are not those that the order names")
            if sent and keep:
                self._store.put(digest, sent)
            return sent
        held = self._store.get(digest)
        if held is None:
            raise Refusal("NEEDS_ARRAYS", f"no arrays {digest[:12]} are held here")
        return held

    def _check_origin(self, order: Order, arrays: Arrays) -> None:
        """Refuse arrays that the study, or the rounds before, cannot have led to."""
        first = order.kind == "train" and order.round == 1
        if first:
            self._check_first(arrays)
            return
        before = order.round if order.kind == "train" else self.study.pretraining.rounds + 1
        trained = self._cache(order).trained(order.model, before)
        if trained is not None:
            check_follows(order, arrays, trained, self.site.policy)
        elif order.kind == "train" and self.keeps_training:
            check_joined(self.study, _network(self.study)[1], order, arrays, self.site.policy)
        # what was tuned from it would go back whole
        elif order.kind == "send" and self.keeps_training:
            raise Refusal("ORDER_MALFORMED", "this site never trained what it was tuned from")

    def _check_first(self, arrays: Arrays) -> None:
        """Refuse arrays from before any training that are not the seed's, or the study's start."""
        start = self.study.start
        if start is not None and digest_of(taken(start, arrays)) != start.arrays:
            raise Refusal("ORDER_MALFORMED", "the first arrays are not the study's start")
        check_first(self.study, arrays)

    def _held(self, order: Order) -> tuple[str, ...]:
        """Which of the order's sets need not come again; what else is held is not told."""
        held = self._store.holds()
        return tuple(sorted({order.arrays, order.base} & set(held)))

    @property
    def _store(self) -> ArrayStore:
        return ArrayStore(self.site.state / "arrays")

    def _cache(self, order: Order) -> ReportCache:
        return ReportCache(self.site.state / "runs" / order.run[:16])

    def _work(self, order: Order, arrays: Arrays) -> Answer:
        if order.kind in _TUNED:
            return self._tune(order, arrays)
        work = {
            "census": self._census,
            "overlap": self._overlap,
            "settle": lambda: self._settle(order, arrays),
            "train": lambda: self._train(order, arrays),
            "evaluate": lambda: self._evaluate(order, arrays),
            "linear": self._linear,
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
        network, plan = _network(self.study)
        cache = self._cache(order)
        self._compare_columns(order, arrays, self.cohort.indices("train", self.study.splits))
        done = train_round(
            self.study, self.site, self._harmonised(arrays), order, network=network, plan=plan,
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
        network, _ = _network(self.study)
        found = list(unlike_columns(self.study, self.cohort, indices, network, arrays))
        for text in found[:_MOST_COLUMNS]:
            _log.warning("%s: %s", self.site.name, text)
        if len(found) > _MOST_COLUMNS:
            more = len(found) - _MOST_COLUMNS
            _log.warning("%s: and %d more columns are unlike the others'", self.site.name, more)
        write_atomically(told, "\n".join(found).encode())

    def _harmonised(self, arrays: Arrays) -> Cohort:
        """The training site's columns as the model of these arrays is to see them."""
        network, _ = _network(self.study)
        return harmonised(self.study, self.site.policy, self.cohort, network, arrays)

    def _settle(self, order: Order, arrays: Arrays) -> Answer:
        if order.model == BASELINES:
            return sum_labels(self.study, self.site, self.cohort)
        network, plan = _network(self.study)
        if order.model in SHORTCUTS:
            return self._shortcuts(order, arrays)
        if set(arrays) != sent_to_settle(network, plan):
            raise Refusal("ORDER_MALFORMED", "the arrays are not those that constants are made by")
        if set(arrays) == set(plan):
            self._check_first(arrays)
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
            self._check_first(arrays)
        else:
            self._check_origin(order.model_copy(update={"model": "federated"}), arrays)
        network, _ = _network(study)
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
        network, _ = _network(self.study)
        self._compare_columns(order, arrays, np.arange(len(self.cohort)))
        load_arrays(network, {**arrays, **self._cache(order).own_arrays(order.model)})
        return judge.network(network)

    def _tune(self, order: Order, arrays: Arrays) -> Answer:
        """Orders about a task of the site's own, and about what was tuned for it."""
        cache = self._cache(order)
        if order.init == "pretrained":
            arrays = {**arrays, **cache.own_arrays(order.model)}
        if order.kind == "protocol":
            repeats = Repeats(
                study=self.study, site=self.site, cohort=self._harmonised(arrays), order=order,
                arrays=arrays, folder=cache.folder,
            )  # fmt: skip
            return Answer(measured=tuple(repeats.measured()))
        models = TunedModels(cache.folder)
        cohort = self._harmonised(arrays)
        tuning = Tuning(self.study, self.site, cohort, order, arrays, models)
        if order.kind != "finetune" and order.kind not in tuning.task.settings.then:
            raise Refusal("ORDER_MALFORMED", f"the study's task does not ask to {order.kind}")
        if order.kind in ("finetune", "judge"):
            rows = tuning.finetune() if order.kind == "finetune" else tuning.judge()
            return Answer(measured=tuple(rows))
        return (
            self._explain(order, tuning) if order.kind == "explain" else self._send(order, tuning)
        )

    def _explain(self, order: Order, tuning: Tuning) -> Answer:
        """The mean maps of one tuned model over the task's test participants."""
        network, task = self._tuned(order, tuning), tuning.task
        test = self.cohort.indices("test", self.study.splits)
        device = choose_device(self.site.device.kind)
        seed = seed_of(self.study.seed, "deletion", self.site.name, order.task, order.repeat)
        found = explained(network, tuning.cohort, test, task, device, seed)
        maps = {"map": found.maps}
        rows = means(
            self.study, self.site, self.cohort, order, task.target_name, found.samples, found.told
        )
        return Answer(
            arrays=maps,
            expected=rules_of(maps),
            behind={"map": found.people},
            measured=tuple(rows),
        )

    def _send(self, order: Order, tuning: Tuning) -> Answer:
        """What tuning trained or added, where the study asks for it and the policy allows it."""
        network = self._tuned(order, tuning)
        state = arrays_of(network)
        sent = {name: state[name] for name in tuned_arrays(network)}
        rules = plan_of(network, self.study.aggregation.normalisation)
        people = tuning.learnt_from(order.repeat)
        return Answer(
            arrays=sent,
            expected={name: rules[name] for name in sent},
            behind=dict.fromkeys(sent, people),
        )

    def _tuned(self, order: Order, tuning: Tuning) -> Any:
        """The tuned network that an order is about."""
        model = tuning.models.find(order, order.repeat)
        if model is None:
            raise Refusal("NO_DATA", "no tuned model of this kind is kept here")
        return tuning.network(model, order.repeat)

    def _linear(self) -> Answer:
        """Penalised linear models of all pretraining targets; validation participants choose."""
        study, features = self.study, regional_features(self.cohort)
        sent: Arrays = {}
        behind: dict[str, int] = {}
        outputs = 1
        for name, target in study.pretraining_targets.items():
            label = self.cohort.labels[name]
            parts = [self.cohort.indices(split, study.splits) for split in ("train", "validation")]
            fitted, held = (part[~np.isnan(label[part])] for part in parts)
            if len(fitted) < 2 or (target.kind != "regression" and len(set(label[fitted])) < 2):
                continue
            strength = choose(target, features, label, [(fitted, held)]) if len(held) else 1.0
            arrays = fit(target, features, label, fitted, strength).arrays(name)
            sent |= arrays
            behind |= dict.fromkeys(arrays, people_among(self.cohort, fitted))
            outputs = max(outputs, target.outputs)
        # of each feature its mean, its spread and the weights
        return Answer(arrays=sent, expected=rules_of(sent), behind=behind, reveals=2 + outputs)


def code_of(error: Exception) -> str:
    """What may be said about an error: a code, never its text."""
    if isinstance(error, Refusal):
        return error.code
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "DISK_FULL" if full or isinstance(error, StorageError) else "SITE_FAILED"
