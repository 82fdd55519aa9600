"""A site's part in secure sums: tell keys, deal out shares, mask a report, help to take masks off.

What it holds to, whatever it is asked: it adds up with the sites that it knows and no others; it
masks one thing with a slot's masks; of each site it tells one of two secrets, once; and it helps
with no sum over fewer sites than the study's threshold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.answer import Answer
from client.secure_sums.peers import Peers, public_of
from client.secure_sums.secrets import Root, Safe
from client.site import Site
from common.arrays import Arrays, blocks, norm_of_difference
from common.errors import Refusal
from common.network.plan import Plan
from common.privacy.site_level import deviation
from common.protocol.orders import Order, Report
from common.secure_sums.masks import Masks
from common.secure_sums.numbers import NUMBERS, Row, written
from common.secure_sums.rosters import (
    KEYS,
    TOTALS,
    Keys,
    Roster,
    Slot,
    about_keys,
    about_round,
    commitment,
    models_of,
    own_seed,
    pair_seed,
    plan_of_keys,
    plan_of_rosters,
    roster_from,
    slot_of,
)
from common.secure_sums.shares import SEALED, SECRET, line_between, opened, sealed, split
from common.secure_sums.tables import DEALT, TOLD, plan_of_dealt, plan_of_passed, plan_of_told
from common.secure_sums.updates import scale_of, update_of
from common.study import Study

_NOTHING = bytes(SECRET)


@dataclass(frozen=True, slots=True)
class Summing:
    """One site's secure sums in one run.

    plan, row: of the study's network. peers: whom it knows.
    """

    site: Site
    study: Study
    plan: Plan
    row: Row
    peers: Peers
    safe: Safe

    def keys(self, order: Order) -> Answer:
        """Public keys for every round of the run, under this site's signature."""
        found = self._keys(order)
        return Answer(arrays={"keys": found.array}, expected=plan_of_keys(self.study))

    def shares(self, order: Order, arrays: Mapping[str, NDArray[Any]]) -> Answer:
        """Shares of this site's secrets for each site of the roster, sealed for it alone.

        Raises
        ------
        Refusal
            TOO_FEW_SITES, or PEERS if a key is not signed by the identity that is known here.
        """
        self._are_those(arrays, order)
        roster = roster_from(order, arrays, self.row.groups)
        self._check(roster, order)
        self.safe.keep_roster(order, arrays, roster.digest)
        root = self.safe.root(order.round)
        own, digest = root.channel(), roster.digest
        lines = {keys.site: line_between(own, keys.channel, digest) for keys in roster.keys}
        slots = [
            slot_of(self.study, model, number)
            for model in models_of(self.study)
            for number in range(1, self.study.pretraining.rounds + 1)
        ]
        places = sorted(self.study.sites.train)
        dealt = np.zeros((len(slots), len(places), SEALED), np.uint8)
        for slot in slots:
            pairs = self._split(root, slot)
            for keys in roster.keys:
                place = places.index(keys.site)
                about = roster.about_shares(slot, self.site.name, keys.site)
                text = sealed(lines[keys.site], about, pairs[place])
                dealt[slot.place, place] = np.frombuffer(text, np.uint8)
        return Answer(arrays={DEALT: dealt.view(np.int32)}, expected=plan_of_dealt(self.study))

    def masked(
        self,
        order: Order,
        report: Report,
        trained: Mapping[str, NDArray[Any]],
        received: Mapping[str, NDArray[Any]],
    ) -> tuple[Report, Arrays]:
        """A training report that passed the gate, as it may leave: without a number of its own.

        The same report gives the same bits; another one for the same slot is refused.
        """
        roster, root = self._agreed()
        slot = slot_of(self.study, order.model, order.round)
        steps = self._steps(roster, root, slot, report, trained, received)
        steps[NUMBERS] = written(report, self.row)
        content = hashlib.sha256()
        for name in sorted(steps):
            content.update(name.encode() + b"\0")
            content.update(steps[name].data)
        self.safe.note_masked(order, roster.attempt, content.hexdigest())
        seeds = self._seeds(roster, root, slot, about_round(order))
        for name, numbers in steps.items():
            Masks(seeds, name, numbers.dtype).put_on(numbers.reshape(-1))
        nothing: dict[str, Any] = {"support": {}, "participants": {}, "counts": {}}
        return report.model_copy(update={**nothing, "measurements": ()}), steps

    def unmask(self, order: Order, arrays: Mapping[str, NDArray[Any]]) -> Answer:
        """One share of each site: of its own mask if it is summed, else of its masks with others.

        Raises
        ------
        Refusal
            TOO_FEW_SITES or SUMS_DECIDED.
        """
        roster, root = self._agreed()
        slot = slot_of(self.study, order.model, order.round)
        summed = self._summed(order, roster)
        places = sorted(self.study.sites.train)
        self._are_as(arrays, plan_of_passed(self.study))
        dealt = np.ascontiguousarray(arrays[DEALT]).view(np.uint8)
        told = np.zeros((len(places), SECRET), np.uint8)
        own, digest = root.channel(), roster.digest
        for keys in roster.keys:
            place = places.index(keys.site)
            line = line_between(own, keys.channel, digest)
            about = roster.about_shares(slot, keys.site, self.site.name)
            both = opened(line, about, dealt[place].tobytes())
            if both is not None:  # else whoever dealt it spoilt it; others may have better ones
                share = both[SECRET:] if keys.site in summed else both[:SECRET]
                told[place] = np.frombuffer(share, np.uint8)
        self.safe.note_unmasked(order, roster.attempt)
        return Answer(arrays={TOLD: told.view(np.int32)}, expected=plan_of_told(self.study))

    def _keys(self, order: Order) -> Keys:
        root = self.safe.root(order.round)
        slots = [
            slot_of(self.study, model, number)
            for model in models_of(self.study)
            for number in range(1, self.study.pretraining.rounds + 1)
        ]
        made = Keys(
            site=self.site.name,
            identity=public_of(self.peers.own),
            channel=root.channel().public_key().public_bytes_raw(),
            masks=tuple(root.mask_key(slot).public_key().public_bytes_raw() for slot in slots),
            commitments=tuple(commitment(root.own_mask(slot)) for slot in slots),
        )
        return made.signed(self.peers.own, about_keys(order))

    def _are_those(self, arrays: Mapping[str, NDArray[Any]], order: Order) -> None:
        """Refuse what is no roster of the sites that an order names."""
        plan = plan_of_rosters(self.study, len(self.row.groups))
        names = {TOTALS, *(f"{KEYS}{site}" for site in order.lineage)}
        self._are_as(arrays, {name: rule for name, rule in plan.items() if name in names})
        if names - plan.keys():
            raise Refusal("PEERS", "the roster names sites that do not train")

    @staticmethod
    def _are_as(arrays: Mapping[str, NDArray[Any]], plan: Plan) -> None:
        seen = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
        if seen != {name: (rule.shape, rule.dtype) for name, rule in plan.items()}:
            raise Refusal("ORDER_MALFORMED", "the arrays are not those that sums are made by")

    def _check(self, roster: Roster, order: Order) -> None:
        """Refuse a roster of strangers, of too few, or with other keys of this site's."""
        sites, fewest = roster.sites, self._fewest
        if len(set(sites)) < len(sites):
            raise Refusal("PEERS", "the roster names a site twice")
        if len(sites) < fewest:
            raise Refusal("TOO_FEW_SITES", f"{len(sites)} sites, the threshold is {fewest}")
        for keys in roster.keys:
            if keys.identity != self.peers.known.get(keys.site):
                raise Refusal("PEERS", f"{keys.site} has another identity than is known here")
            keys.check(about_keys(order.model_copy(update={"site": keys.site})))
        mine = next((keys for keys in roster.keys if keys.site == self.site.name), None)
        if mine is None or mine.array.tobytes() != self._keys(order).array.tobytes():
            raise Refusal("PEERS", "these are not the keys that this site told")

    def _split(self, root: Root, slot: Slot) -> list[bytes]:
        """By place: a share of what the slot's masks with others come from, and of its own."""
        number = len(self.study.sites.train)
        key = root.mask_key(slot).private_bytes_raw()
        pairs = zip(
            split(key, self._fewest, number),
            split(root.own_mask(slot), self._fewest, number),
            strict=True,
        )
        return [one + other for one, other in pairs]

    def _steps(
        self,
        roster: Roster,
        root: Root,
        slot: Slot,
        report: Report,
        trained: Mapping[str, NDArray[Any]],
        received: Mapping[str, NDArray[Any]],
    ) -> Arrays:
        if self.study.privacy.hides_sites:
            return self._hidden_steps(slot, root, trained, received)
        by_people = self.study.aggregation.weight == "participants"
        weights = report.participants if by_people else report.support
        found: Arrays = {}
        for name, rule in self.plan.items():
            if not rule.travels:
                continue
            total = roster.total(rule.group)
            share = weights.get(rule.group, 0) / total if total > 0 else 0.0
            scale = scale_of(self.study, rule)
            found[name] = np.zeros(rule.shape, scale.dtype)
            for part in blocks(rule.shape) if share else ():
                update = update_of(self.plan, name, part, trained, received)
                found[name][part] = scale.encoded(update, share)
        return found

    def _hidden_steps(
        self,
        slot: Slot,
        root: Root,
        trained: Mapping[str, NDArray[Any]],
        received: Mapping[str, NDArray[Any]],
    ) -> Arrays:
        """Steps of an update that is cut down as one, with this site's part of the noise.

        Every site weighs alike. The noise is a secret of the slot's: asked again, it is the same.
        """
        names = sorted(name for name, rule in self.plan.items() if rule.travels)
        length = norm_of_difference({name: trained[name] for name in names}, received)
        factor = min(1.0, self.study.privacy.clip / length) if length else 1.0
        if not np.isfinite(factor):
            raise Refusal("EGRESS", "the update has no length; training has diverged")
        chance, apart = root.noise(slot), deviation(self.study)
        found: Arrays = {}
        for name in names:
            rule, scale = self.plan[name], scale_of(self.study, self.plan[name])
            found[name] = np.zeros(rule.shape, scale.dtype)
            for part in blocks(rule.shape):
                update = update_of(self.plan, name, part, trained, received) * factor
                update += apart * chance.standard_normal(update.shape)
                found[name][part] = scale.encoded(update, 1 / len(self.study.sites.train))
        return found

    def _seeds(
        self, roster: Roster, root: Root, slot: Slot, about: bytes
    ) -> list[tuple[bytes, bool]]:
        """What this site's masks come from; of a pair the later takes off what the other adds."""
        digest, key = roster.digest, root.mask_key(slot)
        pairs = [
            (pair_seed(key, keys.masks[slot.place], digest, about), self.site.name > keys.site)
            for keys in roster.keys
            if keys.site != self.site.name
        ]
        return [(own_seed(root.own_mask(slot), digest, about), False), *pairs]

    def _summed(self, order: Order, roster: Roster) -> frozenset[str]:
        summed = frozenset(order.lineage)
        if len(summed) < len(order.lineage) or not summed <= set(roster.sites):
            raise Refusal("ORDER_MALFORMED", "it names sites twice, or others than agreed")
        if len(summed) < self._fewest:
            raise Refusal(
                "TOO_FEW_SITES", f"a sum over {len(summed)} sites, the threshold is {self._fewest}"
            )
        return summed

    def _agreed(self) -> tuple[Roster, Root]:
        kept = self.safe.roster()
        if kept is None:
            raise Refusal("PEERS", "no roster was agreed on in this run")
        order, arrays = kept
        return roster_from(order, arrays, self.row.groups), self.safe.root(order.round)

    @property
    def _fewest(self) -> int:
        return self.study.secure_sums.fewest(len(self.study.sites.train))
