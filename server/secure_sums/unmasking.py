"""Takes the masks off a sum: from what enough sites told, and off no other sum.

A site's own mask comes from a secret that it dealt out, the masks between a site that did not
answer and the others from another. A share that somebody made up shows: the secret then is not the
one that was committed to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from common.arrays import Arrays, Rows, blocks
from common.errors import CallosumError
from common.network.plan import Plan
from common.secure_sums.masks import Masks
from common.secure_sums.ring import add
from common.secure_sums.rosters import Keys, Roster, Slot, commitment, own_seed, pair_seed
from common.secure_sums.shares import joined

_MOST_TRIES: Final = 2_000  # choices of sites to believe: 37 of eight where six are needed

Seeds = list[tuple[bytes, bool]]


class SpoiltError(CallosumError):
    """A sum cannot be had, or is none of honest sites; the round changes nothing.

    `site` is the one whose secret does not come about; empty where nobody can say who it was.
    """

    def __init__(self, why: str, site: str = "") -> None:
        self.site = site
        super().__init__(why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One slot's sum, as the coordinator knows it.

    about: what the round's masks are for. summed: sites whose arrays are added up. shares: what
    each site told, a row for each of `places`. fewest: how many shares make a secret.
    """

    roster: Roster
    slot: Slot
    about: bytes
    summed: Sequence[str]
    shares: Mapping[str, NDArray[Any]]
    places: Sequence[str]
    fewest: int

    def seeds(self) -> Seeds:
        """The masks that are left in the sum, the other way round.

        Raises
        ------
        SpoiltError
            If a site's secret does not come about, whomever one believes.
        """
        digest, found = self.roster.digest, Seeds()
        keys = {each.site: each for each in self.roster.keys}
        for site in self.summed:
            secret = self._secret(keys[site], self._is_own_mask)
            found.append((own_seed(secret, digest, self.about), True))
        for site in sorted(keys.keys() - set(self.summed)):
            secret = self._secret(keys[site], self._is_mask_key)
            key = X25519PrivateKey.from_private_bytes(secret)
            for other in self.summed:
                theirs = keys[other].masks[self.slot.place]
                seed = pair_seed(key, theirs, digest, self.about)
                found.append((seed, other < site))  # what `other` added is taken off
        return found

    def _secret(self, keys: Keys, right: Callable[[Keys, bytes], bool]) -> bytes:
        """A secret of one site, from the first shares that make the one it is bound to."""
        row = self.places.index(keys.site)
        shares = {
            self.places.index(site) + 1: np.ascontiguousarray(told[row]).tobytes()
            for site, told in sorted(self.shares.items())
            if told[row].any()
        }
        for left_out in islice(_few_first(list(shares), self.fewest), _MOST_TRIES):
            chosen = [place for place in shares if place not in left_out][: self.fewest]
            secret = joined({place: shares[place] for place in chosen})
            if right(keys, secret):
                return secret
        raise SpoiltError(
            f"the masks of {keys.site} cannot be taken off: of {len(shares)} shares of its secret "
            f"no {self.fewest} make it",
            keys.site,
        )

    def _is_own_mask(self, keys: Keys, secret: bytes) -> bool:
        return commitment(secret) == keys.commitments[self.slot.place]

    def _is_mask_key(self, keys: Keys, secret: bytes) -> bool:
        public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        return public == keys.masks[self.slot.place]


def _few_first(places: Sequence[int], fewest: int) -> Iterator[tuple[int, ...]]:
    """Sets of places that need not be believed: nobody, each alone, each two."""
    for number in range(len(places) - fewest + 1):
        yield from combinations(places, number)


def summed(plan: Plan, replies: Sequence[Mapping[str, Rows]], seeds: Seeds) -> Arrays:
    """The arrays of all replies added up and unmasked; one block of one reply is held at a time."""
    return {name: _one(name, plan, replies, seeds) for name in sorted(plan)}


def _one(
    name: str, plan: Plan, replies: Sequence[Mapping[str, Rows]], seeds: Seeds
) -> NDArray[Any]:
    rule = plan[name]
    total = np.zeros(rule.shape, rule.dtype)
    masks = Masks(seeds, name, total.dtype)
    for part in blocks(rule.shape):
        flat = np.zeros(total[part].size, total.dtype)
        for reply in replies:
            add(flat, np.ascontiguousarray(reply[name][part]).reshape(-1))
        masks.put_on(flat)
        total[part] = flat.reshape(total[part].shape)
    return total
