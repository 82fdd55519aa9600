"""The arrays of an order: those that came, those held here, and whether they can be what they seem.

What a site is sent to train, or to tune from, must follow from the study's seed and its own last
report (`continuity`); what a held-out site learns from must be what it has judged.
"""

from __future__ import annotations

from dataclasses import dataclass

from client.authority.admission import TUNING
from client.service.array_store import ArrayStore
from client.service.built_network import built_network
from client.service.continuity import check_drawn, check_follows, check_joined
from client.service.report_cache import ReportCache
from client.site import Site
from common.arrays import Arrays
from common.comparisons import ENSEMBLE, brings_arrays
from common.errors import Refusal
from common.label_sums import CONSTANTS
from common.network.plan import Plan
from common.network.starting import taken
from common.protocol.orders import EMPTY, Order, digest_of
from common.site_shortcuts import MODELS as SHORTCUTS
from common.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembling:
    """The arrays of one run's orders at one site.

    cache: of the run. keeps_training: whether the site remembers what it trained.
    """

    site: Site
    study: Study
    cache: ReportCache
    keeps_training: bool

    def of(self, order: Order, sent: Arrays) -> Arrays:
        """All arrays that the order is about: those that came with it, and those held here.

        Raises
        ------
        Refusal
            NEEDS_ARRAYS if some are neither; ORDER_MALFORMED if they are not the ones it names.
        """
        of_network = (
            order.kind in ("train", *TUNING)
            or order.model in SHORTCUTS
            or (
                order.kind == "evaluate"
                and not order.model.endswith("-linear")
                and order.model not in (*CONSTANTS, ENSEMBLE)
            )
        )
        plan = built_network(self.study)[1] if of_network else {}
        if order.kind == "cross":
            return self._with_heads(order, sent, plan)
        static = {name for name, rule in plan.items() if not rule.travels}
        base = {name: array for name, array in sent.items() if name in static}
        moving = {name: array for name, array in sent.items() if name not in static}
        whole = {
            **self._set(order.base or EMPTY, base, keep=True),
            **self._set(order.arrays, moving, keep=order.kind in TUNING),
        }
        from_nothing = order.kind in TUNING and not brings_arrays(order.init)
        if of_network and not from_nothing and set(whole) != set(plan):
            raise Refusal("ORDER_MALFORMED", "the arrays are not the study's network")
        if order.kind == "train" or (order.kind in TUNING and brings_arrays(order.init)):
            self.check_origin(order, whole)
        return whole

    def _with_heads(self, order: Order, sent: Arrays, plan: Plan) -> Arrays:
        """Heads that other sites sent, and the whole network that they stand on as its base."""
        network = {name: array for name, array in sent.items() if name in plan}
        heads = {name: array for name, array in sent.items() if name not in plan}
        network = self._set(order.base or EMPTY, network, keep=True)
        heads = self._set(order.arrays, heads, keep=False)
        if set(network) != (set(plan) if brings_arrays(order.init) else set()):
            raise Refusal("ORDER_MALFORMED", "the arrays are not the study's network")
        if network:
            still = {name: network[name] for name, rule in plan.items() if not rule.travels}
            base = digest_of(still) if still else ""
            self.check_origin(order.model_copy(update={"base": base}), network)
        return {**heads, **network}

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

    def check_origin(self, order: Order, arrays: Arrays) -> None:
        """Refuse arrays that the study, or the rounds before, cannot have led to.

        A held-out site knows of none of these, and learns from what it has judged: each other set
        of arrays would be one more asking about its people.
        """
        if self.site.role == "heldout":
            if not self.cache.was_judged(order):
                raise Refusal("ORDER_MALFORMED", f"not what was judged here as {order.model}")
            return
        study = self.study.as_trained(order.model)
        if order.kind == "train" and order.round == 1:
            self.check_first(arrays, study)
            return
        before = order.round if order.kind == "train" else self.study.pretraining.rounds + 1
        trained = self.cache.trained(order.model, before)
        if trained is not None:
            check_follows(order, arrays, trained, self.site.policy)
        elif order.kind == "train" and self.keeps_training:
            check_joined(study, built_network(self.study)[1], order, arrays, self.site.policy)
        # what was tuned from it would go back whole
        elif order.kind == "send" and self.keeps_training:
            raise Refusal("ORDER_MALFORMED", "this site never trained what it was tuned from")

    def check_first(self, arrays: Arrays, study: Study) -> None:
        """Refuse arrays from before any training that are not the seed's, or the study's start."""
        start = study.start
        if start is not None and digest_of(taken(start, arrays)) != start.arrays:
            raise Refusal("ORDER_MALFORMED", "the first arrays are not the study's start")
        check_drawn(study, arrays)

    def held(self, order: Order) -> tuple[str, ...]:
        """Which of the order's sets need not come again; what else is held is not told."""
        held = self._store.holds()
        return tuple(sorted({order.arrays, order.base} & set(held)))

    @property
    def _store(self) -> ArrayStore:
        return ArrayStore(self.site.state / "arrays")
