"""What a site keeps of a run's secure sums: one secret, its roster, and what it has decided.

sums/RUN/root.key                    32 random bytes that all of the run's secrets are derived from
sums/RUN/roster.safetensors          the newest roster that it dealt out shares in
sums/RUN/masked-ATTEMPT-MODEL-ROUND  what it masked there: an order, a digest of the numbers
sums/RUN/unmasked-MODEL-ROUND        whose sum it helped to make: an order, for ever
sums/RUN/ended                       no more part in this run's sums: it may have forgotten some
sums/told/DIGEST                     the same by what was trained, over all runs of a study

Each is on disk before anything that follows from it leaves, so that a restarted agent has the same
secrets and holds to the same decisions.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from common.errors import Refusal
from common.protocol.bounded_json import parsed
from common.protocol.orders import Order
from common.protocol.wire import Stored, write_arrays
from common.runtime.durable import write_secret
from common.secure_sums.masks import derived
from common.secure_sums.rosters import Slot
from common.study import canonical

_ENDED: Final = "ended"


@dataclass(frozen=True, slots=True)
class Root:
    """The secrets of one attempt to agree in one run, all derived from `secret`."""

    secret: bytes
    attempt: int

    def channel(self) -> X25519PrivateKey:
        """What shares are sealed for this site with."""
        return self._key("channel", b"")

    def mask_key(self, slot: Slot) -> X25519PrivateKey:
        """What the slot's masks with other sites come from."""
        return self._key("mask key", slot.about)

    def own_mask(self, slot: Slot) -> bytes:
        """What the slot's own mask comes from."""
        return derived(self.secret, f"own mask {self.attempt}", slot.about)

    def noise(self, slot: Slot) -> np.random.Generator:
        """Chance for the slot's noise, the same in every attempt: there is never a second draw."""
        seed = int.from_bytes(derived(self.secret, "noise", slot.about), "big")
        # seeded by 256 bits, as in `client.learning.privacy.chance`; numbers in float64
        return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(seed, pool_size=8)))

    def _key(self, purpose: str, about: bytes) -> X25519PrivateKey:
        made = derived(self.secret, f"{purpose} {self.attempt}", about)
        return X25519PrivateKey.from_private_bytes(made)


@dataclass(frozen=True, slots=True)
class Safe:
    """The folder of one run, below the site's state."""

    state: Path
    run: str

    def root(self, attempt: int) -> Root:
        """The run's secrets; drawn the first time."""
        if (self._folder / _ENDED).exists():
            raise Refusal("SUMS_DECIDED", f"this site's part in the run has ended ({self._folder})")
        path = self._folder / "root.key"
        if not path.exists():
            write_secret(path, secrets.token_bytes(32))
        return Root(path.read_bytes(), attempt)

    def keep_roster(self, order: Order, arrays: Mapping[str, NDArray[Any]], digest: bytes) -> None:
        """Take part in a roster from now on, unless a newer one, or another as new, was kept."""
        path = self._folder / "roster.safetensors"
        if path.exists():
            kept = Stored(path)
            earlier = Order.model_validate_json(kept.text("order"))
            if earlier.round > order.round or (
                earlier.round == order.round and kept.text("digest") != digest.hex()
            ):
                raise Refusal("SUMS_DECIDED", f"attempt {earlier.round} was agreed on before")
        texts = {"order": order.model_dump_json(), "digest": digest.hex()}
        write_arrays(path, arrays, texts)

    def roster(self) -> tuple[Order, Mapping[str, NDArray[Any]]] | None:
        """The order of the newest roster, and what came with it."""
        path = self._folder / "roster.safetensors"
        if not path.exists():
            return None
        kept = Stored(path)
        return Order.model_validate_json(kept.text("order")), kept.all()

    def note_masked(self, order: Order, attempt: int, content: str) -> None:
        """Let this slot's masks be used for just this; once and for ever."""
        what = {"order": order.id, "content": content, "trained": _trained(order)}
        self._decide(
            self._masked(attempt, order.model, order.round), what, "another thing was masked"
        )

    def note_unmasked(self, order: Order, attempt: int) -> None:
        """Help to make just this sum of the slot, over all attempts; once and for ever.

        What was trained from the same arrays in another run is the same to the bit: a sum over
        other sites less this one would be what the sites between trained.
        """
        masked = self._masked(attempt, order.model, order.round)
        sites = sorted(order.lineage)
        if order.site in sites and not masked.exists():
            raise Refusal("ORDER_MALFORMED", "this site masked nothing that could be summed")
        if masked.exists():
            path = self.state / "sums" / "told" / f"{parsed(masked.read_bytes())['trained']}.json"
            self._decide(path, {"sites": sites}, "these updates were summed over other sites")
        path = self._folder / f"unmasked-{order.model}-{order.round:05d}.json"
        self._decide(path, {"order": order.id}, "another sum was made")

    def _masked(self, attempt: int, model: str, number: int) -> Path:
        return self._folder / f"masked-{attempt:04d}-{model}-{number:05d}.json"

    @staticmethod
    def _decide(path: Path, what: Mapping[str, object], why: str) -> None:
        if path.exists():
            if parsed(path.read_bytes()) != what:
                raise Refusal("SUMS_DECIDED", f"{why}, and that stands ({path})")
            return
        write_secret(path, json.dumps(what).encode())

    @property
    def _folder(self) -> Path:
        return self.state / "sums" / self.run


def end_all(state: Path) -> int:
    """End a site's part in the sums of every run that it knows: of how many.

    A state folder that was set back has forgotten what it told since. Asked again, it would tell
    the other secret of the same sites.
    """
    known = [path.parent for path in (state / "sums").glob("*/root.key")]
    for folder in known:
        write_secret(folder / _ENDED, b"")
    return len(known)


def _trained(order: Order) -> str:
    """What a round's update follows from, whatever the run is called."""
    told = [order.study, order.model, order.round, order.arrays, order.base]
    return hashlib.sha256(canonical(told)).hexdigest()
