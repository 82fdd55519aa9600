"""Before the first round of a secure run: keys from each site, then shares that each dealt out.

sums/0001/roster.json   who was asked to deal out shares, and what all of them hold
sums/0001/keys/         public keys, by site
sums/0001/shares/       shares under seal, by site
sums/0001/left-out.json whose secrets did not come about from those shares

Whoever told keys and dealt out no shares, or shares of nothing, would leave masks in every sum;
without such a site agreeing is begun once more, in the next folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import QuorumError
from common.network.plan import Plan
from common.protocol.orders import Report
from common.protocol.wire import Stored
from common.runtime.progress import say
from common.secure_sums.numbers import Row, plan_of_masked, row_of
from common.secure_sums.rosters import (
    KEYS,
    TOTALS,
    Keys,
    Roster,
    Slot,
    plan_of_keys,
    read_keys,
)
from common.secure_sums.tables import DEALT, plan_of_dealt
from common.study import Study
from server.federation.asking import Asking
from server.federation.expectation import Most
from server.federation.parcel import NOTHING, parcel_of
from server.run_files import read_sealed, write_sealed

_ROSTER: Final = "roster.json"
_LEFT_OUT: Final = "left-out.json"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the sites of a run have agreed on.

    plan: of the network. row: of the numbers beside its arrays. folder: of the attempt that held.
    """

    study: Study
    roster: Roster
    plan: Plan
    row: Row
    folder: Path

    @property
    def masked(self) -> Plan:
        """What a masked report holds."""
        return plan_of_masked(self.study, self.plan, self.row)

    @property
    def places(self) -> list[str]:
        """Sites in the order of their shares."""
        return sorted(self.study.sites.train)

    @property
    def fewest(self) -> int:
        """The threshold."""
        return self.study.secure_sums.fewest(len(self.study.sites.train))

    @property
    def holds(self) -> bool:
        """Whether nobody of it had to be left out since."""
        return not (self.folder / _LEFT_OUT).exists()

    def leave_out(self, site: str) -> None:
        """Agree anew without `site`, before the next round."""
        write_sealed(self.folder / _LEFT_OUT, {"sites": [site]})

    def sealed(self, slot: Slot) -> NDArray[np.int32]:
        """Shares of one slot under seal, by who dealt them out and whom they are for; (N, N, W).

        They are read unchecked: what a disk changed does not open, and others hold as many.
        """
        sites, width = len(self.places), plan_of_dealt(self.study)[DEALT].shape[-1]
        found = np.zeros((sites, sites, width), np.int32)
        for site in self.roster.sites:
            dealt = Stored(self.folder / "shares" / f"{site}.safetensors")
            rows = dealt.rows(DEALT, slice(slot.place, slot.place + 1))
            found[self.places.index(site)] = rows[0]
        return found


def agree(asking: Asking, plan: Plan, census: Mapping[str, Report]) -> Agreement:
    """Have the sites of the census agree, or take up what they agreed on.

    Raises
    ------
    QuorumError
        If fewer sites than the threshold do; the same command asks the others again.
    """
    study, base = asking.run.study, asking.run.folder / "sums"
    row, sites = row_of(study, plan, _terms(study)), sorted(census)
    number = max([1, *(int(path.name) for path in base.glob("[0-9]*"))])
    if not (base / f"{number:04d}" / _ROSTER).exists() and number > 1:
        number -= 1  # who is asked in the next follows from that one
    while True:
        folder = base / f"{number:04d}"
        if (folder / _LEFT_OUT).exists():
            told = read_sealed(folder / _ROSTER)["sites"]
            sites = [site for site in told if site not in read_sealed(folder / _LEFT_OUT)["sites"]]
            number += 1
            continue
        roster = _roster(asking, folder, number, row, sites, census)
        agreed = Agreement(study, roster, plan, row, folder)
        dealt = _deal(asking, agreed, number)
        if set(dealt) == set(roster.sites):
            return agreed
        _enough(study, dealt, "dealt out shares for secure sums")
        sites, number = dealt, number + 1


def _terms(study: Study) -> tuple[str, ...]:
    from server.federation.initial import terms_of  # torch, for as long as it is needed

    return terms_of(study)


def _roster(
    asking: Asking,
    folder: Path,
    number: int,
    row: Row,
    sites: Sequence[str],
    census: Mapping[str, Report],
) -> Roster:
    """Ask for keys; who told them is in the roster, which is never another once it is written."""
    study, file = asking.run.study, folder / _ROSTER
    wanted = read_sealed(file)["sites"] if file.exists() else sites
    orders = asking.orders("keys", wanted, NOTHING, round=number)
    outcome = asking.ask(
        orders, NOTHING, folder / "keys", plan_of_keys(study), "keys for secure sums: sites"
    )
    found = sorted(outcome.reports)
    if not file.exists():
        found = [site for site in found if _is_itself(asking, site, folder)]
        _enough(study, found, "told keys for secure sums")
        held = [Most(study, site, census[site]) for site in found]
        by_people = study.aggregation.weight == "participants"
        totals = [
            sum(each.people(group) if by_people else each.scans(group) for each in held)
            for group in row.groups
        ]
        write_sealed(file, {"sites": found, "totals": totals})
    kept = read_sealed(file)
    if not set(kept["sites"]) <= set(found):
        raise QuorumError(
            f"keys of {', '.join(sorted(set(kept['sites']) - set(found)))} for secure sums are "
            "lost; the same command asks for them again"
        )
    keys = tuple(_keys(folder, site) for site in kept["sites"])
    return Roster(
        study=study.digest, run=asking.run.id, attempt=number, keys=keys, groups=row.groups,
        totals=tuple(kept["totals"]),
    )  # fmt: skip


def _keys(folder: Path, site: str) -> Keys:
    return read_keys(site, Stored(folder / "keys" / f"{site}.safetensors")["keys"])


def _is_itself(asking: Asking, site: str, folder: Path) -> bool:
    """Whether a site has the identity that it is known by; all others would refuse it."""
    known = asking.exchange.identities
    same = not known or known.get(site) == _keys(folder, site).identity
    if not same:
        say(
            f"{site} tells another identity than peers.toml of the hub has, and is left out of "
            "secure sums; compare the file with what callosum-site identity shows there"
        )
    return same


def _deal(asking: Asking, agreed: Agreement, number: int) -> list[str]:
    roster = agreed.roster
    arrays: dict[str, NDArray[np.int32] | NDArray[np.int64]] = {
        f"{KEYS}{keys.site}": keys.array for keys in roster.keys
    }
    arrays[TOTALS] = np.array(roster.totals, np.int64)
    parcel = parcel_of(arrays, {})
    orders = asking.orders("shares", roster.sites, parcel, round=number, lineage=roster.sites)
    plan, title = plan_of_dealt(agreed.study), "shares for secure sums: sites"
    return sorted(asking.ask(orders, parcel, agreed.folder / "shares", plan, title).reports)


def _enough(study: Study, sites: Sequence[str], what: str) -> None:
    fewest = study.secure_sums.fewest(len(study.sites.train))
    if len(sites) < fewest:
        raise QuorumError(
            f"{len(sites)} of {len(study.sites.train)} sites {what}, the threshold is {fewest}; "
            "the same command asks the missing sites again"
        )
