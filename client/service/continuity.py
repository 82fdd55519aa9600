"""Whether the arrays of an order are what the study and the rounds before can have led to.

A coordinator who sends arrays of its own making asks each site for what these single out: a layer
that fires for one participant returns her row. The first round's arrays are drawn from the study's
seed, so a site draws them itself; later ones lie about where its own last report was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.service.report_cache import Trained
from client.site import Policy
from common.arrays import norm_of_difference
from common.errors import Refusal
from common.network.building import arrays_of, build
from common.network.plan import Plan
from common.network.settling import constants
from common.network.starting import names_taken
from common.protocol.orders import Order, digest_of
from common.seams import FROZEN
from common.seeding import seed_of
from common.study import Study

_ALIKE: Final = 1e-4  # of the arrays' norm: another processor may round another way
_SHORTEST: Final = 1e-3  # of the arrays' norm: whoever barely moves does not bind the others to it

Arrays = Mapping[str, NDArray[Any]]


def check_drawn(study: Study, arrays: Arrays) -> None:
    """Raise `Refusal` unless a first round begins where the study's seed says.

    What comes from the study's `[start]` is checked by its digest; constants that were settled
    are made of everyone's sums, and nobody can check them alone.
    """
    names, digest = _drawn(study)
    if digest_of({name: arrays[name] for name in names}) == digest:
        return
    drawn = _draw(study)
    apart = norm_of_difference({name: arrays[name] for name in names}, drawn)
    if not apart <= _ALIKE * _norm(drawn[name] for name in names):
        raise Refusal("ORDER_MALFORMED", f"the arrays lie {apart:.3g} from what the seed draws")


def check_follows(order: Order, arrays: Arrays, trained: Trained, policy: Policy) -> None:
    """Raise `Refusal` if arrays lie further from this site's last report than rounds lead."""
    if order.base != trained.base:
        raise Refusal("ORDER_MALFORMED", "arrays that nobody trains are others than before")
    since = max(1, order.round - trained.round)
    length = max(trained.moved, _SHORTEST * _norm(trained.arrays.values()))
    apart = norm_of_difference(trained.arrays, arrays)
    if policy.largest_drift and not apart <= policy.largest_drift * length * since:
        raise Refusal(
            "ORDER_MALFORMED",
            f"the arrays lie {apart:.3g} from this site's report of round {trained.round}, whose "
            f"update was {trained.moved:.3g}; policy.largest_drift is {policy.largest_drift:g}",
        )


def check_joined(study: Study, plan: Plan, order: Order, arrays: Arrays, policy: Policy) -> None:
    """The same for a site that comes in late: against the first arrays, round by round."""
    names, _ = _drawn(study)
    drawn = _draw(study)
    still = {name: arrays[name] for name in names if plan[name].group == FROZEN}
    if not norm_of_difference(still, drawn) <= _ALIKE * _norm(drawn[name] for name in still):
        raise Refusal("ORDER_MALFORMED", "arrays that nobody trains are not those of the seed")
    apart = norm_of_difference({name: arrays[name] for name in names}, drawn)
    most = policy.largest_update_norm * (order.round - 1)
    if policy.largest_update_norm and not apart <= most:
        raise Refusal(
            "ORDER_MALFORMED", f"{apart:.3g} from the first arrays after {order.round - 1} rounds"
        )


@lru_cache(maxsize=4)
def _drawn(study: Study) -> tuple[tuple[str, ...], str]:
    """Names of the arrays that are drawn, and their digest."""
    network = build(study, seed=seed_of(study.seed, "initial"))
    arrays, settled = arrays_of(network), constants(network)
    begun = set(names_taken(study.start, arrays)) if study.start is not None else set()
    names = tuple(sorted(arrays.keys() - settled - begun))
    return names, digest_of({name: arrays[name] for name in names})


def _draw(study: Study) -> Arrays:
    return arrays_of(build(study, seed=seed_of(study.seed, "initial")))


def _norm(arrays: Iterable[NDArray[Any]]) -> float:
    squares = (float(np.sum(np.square(array, dtype=np.float64))) for array in arrays)
    return float(np.sqrt(sum(squares)))
