"""Whose labels two studies use: bounds that differ by a year may differ by a single person.

A study's `low`, `high` and classes say which entries of a column count. Two studies that use the
same people's labels but for a few tell of those few by their difference, in a metric or in a sum.
So every set that was in use is kept, and a later one is cut until it differs by nobody, or by as
many as the site's minimum support: who is new waits, and who is gone takes others along.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.data.splits import pseudonyms, secret_of, split_of
from client.site import Site
from common.errors import FolderError
from common.protocol.bounded_json import parsed
from common.runtime.durable import write_secret
from common.study import Study

FILE: Final = "labels.json"  # below the site's folder
_DIGITS: Final = 20  # of a person's pseudonym, and of what follows it
_ONE_AT_A_TIME: Final = threading.Lock()  # studies are opened side by side

Items = frozenset[str]  # each a person's pseudonym, then that of a scan and what of it is labelled
Groups = Mapping[str, Items]  # by split


@dataclass(frozen=True, slots=True)
class LabelSets:
    """The sets that were in use at one site, by the place of the labels, in one file."""

    path: Path

    def settle(self, place: str, groups: Groups, minimum: int) -> Items:
        """Those of the items that may be used, which are entered.

        Raises
        ------
        FolderError
            If the file cannot be read: an empty one would let a near copy through.
        """
        with _ONE_AT_A_TIME:
            sets = self._read()
            found = settled(groups, sets.get(place, []), minimum)
            if found not in sets.get(place, []):
                sets[place] = [*sets.get(place, []), found]
                told = {
                    where: [{part: sorted(items) for part, items in one.items()} for one in every]
                    for where, every in sets.items()
                }
                write_secret(self.path, json.dumps(told).encode())
            return everything(found)

    def _read(self) -> dict[str, list[Groups]]:
        try:
            return {
                str(place): [
                    {str(part): frozenset(map(str, items)) for part, items in one.items()}
                    for one in every
                ]
                for place, every in parsed(self.path.read_bytes()).items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FolderError(
                f"{self.path} cannot be read: {error}; put its newest backup in its place"
            ) from None


def with_settled_labels(
    study: Study, site: Site, cohort: Cohort, tell: Callable[[str], None]
) -> Cohort:
    """The cohort without the labels that must not be used; `tell` is given of how many people."""
    secret, minimum, labels = secret_of(site), site.policy.minimum_support, dict(cohort.labels)
    owners = [name[:_DIGITS] for name in pseudonyms(cohort.participants, secret)]
    names = dict(zip(owners, cohort.participants, strict=True))
    part_of = {owner: split_of(name, study.splits, secret) for owner, name in names.items()}
    for name, values in cohort.labels.items():
        column = site.targets.get(name)
        if column is None or column.value:  # nobody's, or everybody's
            continue
        items = _items(owners, cohort.scans, ~np.isnan(values), secret)
        groups: dict[str, Items] = {
            part: frozenset(one for one in items if one and part_of[owner_of(one)] == part)
            for part in sorted(set(part_of.values()))
        }
        kept = LabelSets(site.state / FILE).settle(column.place, groups, minimum)
        lost = np.array([one not in kept for one in items])
        gone = {owner_of(one) for one in items if one and one not in kept}
        if gone:
            labels[name] = np.where(lost, np.nan, values).astype(values.dtype)
            tell(
                f"{site.name}: {study.name} goes without {name} of {len(gone)} people: with theirs "
                f"it would differ by fewer than {minimum} (policy.minimum_support) from what was "
                "used before"
            )
    return replace(cohort, labels=labels)


def settled(groups: Groups, earlier: Sequence[Groups], minimum: int) -> Groups:
    """The groups, cut until each, and all together, may stand beside every earlier one."""
    found, cut = dict(groups), True
    while cut:
        cut = False
        for other in reversed(earlier):
            pairs = [(found[part], other.get(part, frozenset())) for part in found]
            for ours, theirs in [*pairs, (everything(found), everything(other))]:
                if without := _left_out(ours, theirs, minimum):
                    found = {part: items - without for part, items in found.items()}
                    cut = True
    return found


def everything(groups: Groups) -> Items:
    """The items of all splits."""
    return frozenset().union(*groups.values())


def owner_of(item: str) -> str:
    """The pseudonym of the person whose scan it is."""
    return item[:_DIGITS]


def _left_out(ours: Items, theirs: Items, minimum: int) -> Items:
    """What must go from `ours`, if the two are told apart by too few people."""
    apart = _owners(ours ^ theirs)
    # of so few people no figure leaves
    spoken = min(len(_owners(ours)), len(_owners(theirs))) >= minimum
    if not spoken or not 0 < len(apart) < minimum:
        return frozenset()
    if new := ours - theirs:
        return new
    along = set(sorted(_owners(ours) - apart)[: minimum - len(apart)])
    return frozenset(item for item in ours if owner_of(item) in along)


def _owners(items: Items) -> Items:
    return frozenset(map(owner_of, items))


def _items(
    owners: Sequence[str], scans: Sequence[str], known: NDArray[np.bool_], secret: str
) -> list[str]:
    """For each sample the item of its scan, which says which of the scan's samples are labelled."""
    patterns: dict[tuple[str, str], list[str]] = {}
    for owner, scan, labelled in zip(owners, scans, known, strict=True):
        patterns.setdefault((owner, scan), []).append("1" if labelled else "0")
    of = {}
    for (owner, scan), pattern in patterns.items():
        text = f"{secret}\0labels\0{scan}\0{''.join(pattern)}".encode()
        tail = hashlib.sha256(text).hexdigest()[:_DIGITS]
        of[owner, scan] = owner + tail if "1" in pattern else ""
    return [of[key] for key in zip(owners, scans, strict=True)]
