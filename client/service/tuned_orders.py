"""Orders about a task of the site's own, and about what was tuned for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.answer import Answer
from client.data.cohort import Cohort
from client.learning.explanation import explained
from client.learning.finetuning import Tuning
from client.learning.measurement import means
from client.learning.protocols import Repeats
from client.learning.training import choose_device
from client.learning.tuned_elsewhere import judge_heads, sent_head
from client.learning.tuned_models import TunedModel, TunedModels
from client.service.built_network import built_network
from client.site import Site
from common.arrays import Arrays
from common.comparisons import CLOSED_FORM
from common.errors import Refusal
from common.network.building import arrays_of, plan_of
from common.network.plan import rules_of
from common.network.tuning import tuned_arrays
from common.protocol.orders import Order
from common.seeding import seed_of
from common.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedOrders:
    """Carries them out; `cohort` is as the model is to see it, `folder` is the run's."""

    site: Site
    study: Study
    cohort: Cohort
    folder: Path

    def answer(self, order: Order, arrays: Arrays) -> Answer:
        """What the site answers; `arrays` are the order's, with the site's own."""
        if order.kind == "protocol":
            repeats = Repeats(
                study=self.study, site=self.site, cohort=self.cohort, order=order, arrays=arrays,
                folder=self.folder,
            )  # fmt: skip
            return Answer(measured=tuple(repeats.measured()))
        models = TunedModels(self.folder)
        tuning = Tuning(self.study, self.site, self.cohort, order, arrays, models)
        if order.kind != "finetune" and order.kind not in tuning.task.settings.then:
            raise Refusal("ORDER_MALFORMED", f"the study's task does not ask to {order.kind}")
        if order.kind == "cross":
            plan = built_network(self.study)[1]
            heads = {name: array for name, array in arrays.items() if name not in plan}
            return Answer(measured=tuple(judge_heads(tuning, heads)))
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
        if order.method in CLOSED_FORM:
            return sent_head(tuning, self._kept(order, tuning))
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
        return tuning.network(self._kept(order, tuning), order.repeat)

    def _kept(self, order: Order, tuning: Tuning) -> TunedModel:
        model = tuning.models.find(order, order.repeat)
        if model is None:
            raise Refusal("NO_DATA", "no tuned model of this kind is kept here")
        return model
