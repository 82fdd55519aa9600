"""Who adds up together: the sites of one run, the keys of each, and one digest of all of it.

A site signs its keys with the identity that the others know it by, so that nobody in between can
put in keys of its own. Keys for every round are told at once: a round costs no exchange of keys,
and who misses one comes back to the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from common.errors import Refusal
from common.network.plan import Plan, Rule
from common.protocol.orders import Order
from common.seams import SHARED
from common.secure_sums.masks import derived
from common.secure_sums.shares import agreed
from common.study import Study, canonical

KEYS: Final = "keys/"  # beginning of the names of arrays of public keys
TOTALS: Final = "totals"  # array of what all sites hold, by group
_CONTEXT: Final = b"callosum keys for secure sums 1\0"
_WIDTH: Final = 8  # int32 of 32 bytes
_ROWS: Final = 4  # besides two for each slot: identity, channel, and a signature of two


@dataclass(frozen=True, slots=True)
class Slot:
    """One masked sum: a model's round, and its place among all of a run."""

    model: str
    round: int
    place: int

    @property
    def about(self) -> bytes:
        """What its keys and shares are about."""
        return canonical([self.model, self.round])


def models_of(study: Study) -> tuple[str, ...]:
    """Models whose rounds are summed, in their order."""
    return (*study.comparisons.members, *sorted(study.comparisons.targets))


def slots_of(study: Study) -> int:
    """How many sums a run has."""
    return len(models_of(study)) * study.pretraining.rounds


def slot_of(study: Study, model: str, number: int) -> Slot:
    """The slot of a model's round, or `Refusal` where there is none."""
    models, rounds = models_of(study), study.pretraining.rounds
    if model not in models or not 1 <= number <= rounds:
        raise Refusal("ORDER_MALFORMED", f"{study.name} sums no round {number} of {model}")
    return Slot(model, number, models.index(model) * rounds + number - 1)


@dataclass(frozen=True, slots=True)
class Keys:
    """One site's public keys for a run.

    identity: Ed25519, of all runs. channel: X25519, that shares are sealed for. masks: X25519, by
    slot. commitments: SHA-256 of each slot's own mask, by which wrong shares show.
    """

    site: str
    identity: bytes
    channel: bytes
    masks: tuple[bytes, ...]
    commitments: tuple[bytes, ...]
    signature: bytes = b""

    def signed(self, key: Ed25519PrivateKey, about: bytes) -> Keys:
        """The same under its site's signature."""
        return Keys(
            self.site, self.identity, self.channel, self.masks, self.commitments,
            key.sign(_CONTEXT + about + self._body),
        )  # fmt: skip

    def check(self, about: bytes) -> None:
        """Raise `Refusal` unless the identity that is told signed this, and all keys can be used.

        Raises
        ------
        Refusal
            PEERS.
        """
        try:
            key = Ed25519PublicKey.from_public_bytes(self.identity)
            key.verify(self.signature, _CONTEXT + about + self._body)
            probe = X25519PrivateKey.generate()
            for public in (self.channel, *self.masks):  # a few points agree with nobody
                agreed(probe, public)
        except (InvalidSignature, ValueError) as error:
            why = type(error).__name__
            raise Refusal("PEERS", f"the keys of {self.site} do not hold: {why}") from None

    @property
    def array(self) -> NDArray[np.int32]:
        """As it travels: a row of 32 bytes each."""
        return np.frombuffer(self._body + self.signature, np.int32).reshape(-1, _WIDTH)

    @property
    def _body(self) -> bytes:
        pairs = (part for pair in zip(self.masks, self.commitments, strict=True) for part in pair)
        return b"".join((self.identity, self.channel, *pairs))


def read_keys(site: str, array: NDArray[Any]) -> Keys:
    """A site's keys from the array that they travel in; nothing of them is checked."""
    rows = [bytes(row) for row in np.ascontiguousarray(array, np.int32)]
    return Keys(
        site=site, identity=rows[0], channel=rows[1], masks=tuple(rows[2:-2:2]),
        commitments=tuple(rows[3:-2:2]), signature=rows[-2] + rows[-1],
    )  # fmt: skip


def commitment(own_mask: bytes) -> bytes:
    """What a site tells of the mask that it alone knows: 32 random bytes cannot be guessed."""
    return hashlib.sha256(b"callosum own mask 1\0" + own_mask).digest()


def plan_of_keys(study: Study) -> Plan:
    """What a site's keys look like."""
    return {"keys": _rule((_ROWS + 2 * slots_of(study), _WIDTH), "int32")}


def plan_of_rosters(study: Study, groups: int) -> Plan:
    """What an order that deals out shares may bring."""
    keys = plan_of_keys(study)["keys"]
    found = {f"{KEYS}{site}": keys for site in study.sites.train}
    return {**found, TOTALS: _rule((groups,), "int64")}


def _rule(shape: tuple[int, ...], dtype: str) -> Rule:
    return Rule(shape=shape, dtype=dtype, group=SHARED, role="statistic", kept=False)


def about_keys(order: Order) -> bytes:
    """What a signature of keys is for: a site's in one run's attempt to agree."""
    return canonical([order.study, order.run, order.site, order.round])


def about_round(order: Order) -> bytes:
    """What a round's masks are for: all that its training order says, but to whom."""
    told = order.model_dump(mode="json")
    return canonical({name: value for name, value in told.items() if name != "site"})


@dataclass(frozen=True, slots=True)
class Roster:
    """The sites of one run that add up together, and what each must know of the others.

    attempt: how often agreeing was begun. totals: what all of them hold, by group: what an update
    is weighed against. groups: their names.
    """

    study: str
    run: str
    attempt: int
    keys: tuple[Keys, ...]
    groups: tuple[str, ...]
    totals: tuple[int, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(keys.site for keys in self.keys)

    def of(self, site: str) -> Keys:
        """One site's keys."""
        return self.keys[self.sites.index(site)]

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it: whoever was told anything else is in another roster."""
        head = canonical([self.study, self.run, self.attempt, self.groups, self.totals, self.sites])
        bodies = b"".join(keys.array.tobytes() for keys in self.keys)
        return hashlib.sha256(head + bodies).digest()

    def total(self, group: str) -> int:
        """What all sites hold of a group."""
        return self.totals[self.groups.index(group)]

    def about_shares(self, slot: Slot, sender: str, receiver: str) -> bytes:
        """What is sealed, by whom, for whom."""
        return self.digest + canonical([slot.model, slot.round, sender, receiver])


def pair_seed(own: X25519PrivateKey, theirs: bytes, roster: bytes, about: bytes) -> bytes:
    """The seed of the masks that two sites have in common, for one order of one roster."""
    return derived(agreed(own, theirs), "pair", about, roster)


def own_seed(own_mask: bytes, roster: bytes, about: bytes) -> bytes:
    """The seed of the masks that one site alone knows, likewise."""
    return derived(own_mask, "own", about, roster)


def roster_from(
    order: Order, arrays: Mapping[str, NDArray[Any]], groups: tuple[str, ...]
) -> Roster:
    """The roster that an order to deal out shares tells; nothing of it is checked."""
    return Roster(
        study=order.study,
        run=order.run,
        attempt=order.round,
        keys=tuple(read_keys(site, arrays[f"{KEYS}{site}"]) for site in sorted(order.lineage)),
        groups=groups,
        totals=tuple(int(each) for each in arrays[TOTALS]),
    )
