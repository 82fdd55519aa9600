"""Hiding a whole site: its update is cut down as one, and noise comes on top that sites share.

Two federations are neighbours if all that one site holds is replaced by anything else. Its update,
at most `clip` long, then moves the sum by at most twice that, whatever one of its people, or all of
them, changed. Each site adds its part of the noise before its masks, so that nobody, the
coordinator included, sees a sum with less.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from common.errors import SettingError

if TYPE_CHECKING:
    from common.network.plan import Plan
    from common.study import Study

_TAILS: Final = 8.0  # deviations: one number of 1e15 is further out


def deviation(study: Study) -> float:
    """Standard deviation of the noise that one site adds to each number of its update.

    So much that the others' together are whole in any sum that a lying coordinator can get at with
    one site on its side, or that such a site sees without it.
    """
    sites, privacy = len(study.sites.train), study.privacy
    others = max(1, study.secure_sums.hidden_among(sites, 1))
    return privacy.noise * privacy.clip / math.sqrt(others)


def check_site_level(study: Study) -> None:
    """Raise `ValueError`, with the key to change, where a site would not be hidden."""
    privacy, sums = study.privacy, study.secure_sums
    if not sums.on:
        raise ValueError(
            'privacy.unit is "site" and secure_sums.on is false; the noise is shared by the sites, '
            "and only in their sum it is whole: set secure_sums.on = true"
        )
    if privacy.clipping != "flat":
        raise ValueError(
            f'privacy.unit is "site" and privacy.clipping "{privacy.clipping}"; a site\'s update '
            'is cut down as one: "flat"'
        )
    needed = privacy.clip + _TAILS * deviation(study)
    if sums.largest_update < needed:
        raise ValueError(
            f"secure_sums.largest_update is {sums.largest_update:g}; an update of length "
            f"{privacy.clip:g} with noise of {deviation(study):.3g} on each number needs "
            f"{math.ceil(needed):g} at least"
        )


def check_statistics(plan: Plan) -> None:
    """Raise `SettingError` for statistics that sites would send: no length is theirs."""
    for name, rule in plan.items():
        if rule.travels and rule.role == "statistic":
            raise SettingError(
                f"aggregation.normalisation: {name} would be cut down and noised like a weight "
                '(privacy.unit is "site"); "groupnorm" has no statistics'
            )
