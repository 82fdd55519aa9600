"""What two answers tell together: the difference of two groups of people is about those between.

Two studies whose splits differ by a hair, or two censuses between which one person joined, each
say nothing about anybody; their difference is hers. Between none and a site's minimum support,
nothing may change from one to the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, get_args

from client.data.splits import Split, split_of
from common.errors import FolderError, Refusal, SettingError
from common.protocol.bounded_json import parsed
from common.runtime.durable import write_secret
from common.sections import Splits
from common.study import Study

FILE: Final = "censuses.json"  # below the site's folder
People = frozenset[str]


def groups(people: Iterable[str], splits: Splits, secret: str) -> dict[str, People]:
    """Everyone, and who is in which split."""
    of = {name: split_of(name, splits, secret) for name in people}
    found = {split: frozenset(n for n, one in of.items() if one == split) for split in _SPLITS}
    return {"all": frozenset(of), **found}


def refuse_near_copy(
    study: Study,
    earlier: Iterable[Study],
    people_of: Callable[[Study], People],
    secret: str,
    minimum: int,
) -> None:
    """Refuse a study that differs from an earlier one by a few people of this site.

    Raises
    ------
    SettingError
        Naming the other study, and how many people change their place.
    """
    ours = groups(people_of(study), study.splits, secret)
    for other in earlier:
        theirs = groups(people_of(other), other.splits, secret)
        for name, people in ours.items():
            moved = len(people ^ theirs[name])
            if 0 < moved < minimum:
                raise SettingError(
                    f"{study.name} and {other.name} ({other.digest[:12]}), approved here before, "
                    f"differ by {moved} of this site's people in {_WORDS[name]}; the difference "
                    f"of the two would be about them alone. It must be none, or at least "
                    f"{minimum} (policy.minimum_support): ask for the earlier study's [splits] "
                    "and data"
                )


@dataclass(frozen=True, slots=True)
class Censuses:
    """Who was counted in each census that this site answered, by pseudonyms, in one file."""

    path: Path

    def without_newcomers(self, people: People, minimum: int) -> People:
        """`people`, less those who came since an earlier census, while they are too few to join."""
        for census in reversed(self._read()):
            before = frozenset(census["people"])
            if before < people and len(people - before) < minimum:
                return before
        return people

    def admit(self, people: People, minimum: int) -> None:
        """Enter a census of `people`, unless it differs by too few from an earlier one.

        Raises
        ------
        Refusal
            COHORT_TOO_SMALL.
        """
        earlier = self._read()
        for census in earlier:
            moved = len(people ^ frozenset(census["people"]))
            if moved == 0:
                return
            if moved < minimum:
                raise Refusal(
                    "COHORT_TOO_SMALL",
                    f"{moved} people came or went since the census of {census['time']}; the two "
                    f"together would be about them alone, until there are {minimum} "
                    "(policy.minimum_support)",
                )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_secret(
            self.path, json.dumps([*earlier, {"time": now, "people": sorted(people)}]).encode()
        )

    def _read(self) -> list[dict[str, Any]]:
        try:
            found = parsed(self.path.read_bytes())
            return [{"time": str(one["time"]), "people": list(one["people"])} for one in found]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FolderError(
                f"{self.path} cannot be read: {error}; put its newest backup in its place"
            ) from None


_SPLITS: Final = get_args(Split)
_WORDS: Final = {
    "all": "all",
    "train": "training",
    "validation": "validation",
    "test": "the test",
    "spared": "those whom splits.share spares",
}
