"""The two tables of shares: what a site deals out for all rounds, and what it tells for one.

Rows are training sites in alphabetical order, whoever is in the roster; bytes travel as int32.
"""

from __future__ import annotations

from typing import Final

from common.network.plan import Plan, Rule
from common.seams import SHARED
from common.secure_sums.rosters import slots_of
from common.secure_sums.shares import SEALED, SECRET
from common.study import Study

DEALT: Final = "shares"  # under seal
TOLD: Final = "told"  # in the open


def plan_of_dealt(study: Study) -> Plan:
    """Two shares under seal, of each slot, for each site."""
    return {DEALT: _rule((slots_of(study), len(study.sites.train), SEALED // 4))}


def plan_of_passed(study: Study) -> Plan:
    """Those that are for one site, of one slot, by each site: what comes with an unmask order."""
    return {DEALT: _rule((len(study.sites.train), SEALED // 4))}


def plan_of_told(study: Study) -> Plan:
    """One share of each site's; zeros where there is none."""
    return {TOLD: _rule((len(study.sites.train), SECRET // 4))}


def _rule(shape: tuple[int, ...]) -> Rule:
    return Rule(shape=shape, dtype="int32", group=SHARED, role="statistic", kept=False)
