"""What a person at the site should know of the files: what is odd, left out, or does not match."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MOST_FINDINGS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about one file or row that a person at the site should know.

    `error`: what the site file promises is not there, or things that belong together hardly meet;
    `check` then says no.
    """

    what: str
    problem: str
    left_out: bool = False
    error: bool = False

    @property
    def grade(self) -> str:
        """How grave it is, in a word or two."""
        return "error" if self.error else "left out" if self.left_out else "note"


class Findings(list[Finding]):
    """Findings as they are made; beyond `MOST_FINDINGS` they are counted and no more.

    A file of a few kB can be wrong in a million rows; nobody reads about the second thousand.
    """

    def __init__(self, found: Iterable[Finding] = ()) -> None:
        super().__init__()
        self._more, self._left_out = 0, 0
        self.extend(found)

    @property
    def full(self) -> bool:
        """Whether what is found from here on is only counted."""
        return len(self) >= MOST_FINDINGS

    def append(self, finding: Finding, /) -> None:
        """Note one more."""
        if not self.full or finding.error:  # of errors there is one a table or target
            super().append(finding)
            return
        self._more += 1
        self._left_out += finding.left_out

    def extend(self, found: Iterable[Finding], /) -> None:
        """Note several."""
        for finding in found:
            self.append(finding)

    def told(self) -> tuple[Finding, ...]:
        """All of them, the last of which says how many more there are."""
        if not self._more:
            return tuple(self)
        problem = f"and {self._more:,} more, of which {self._left_out:,} were left out"
        return (*self, Finding(what="...", problem=problem, left_out=self._left_out > 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """How many of two things that belong together found each other, for people.

    >>> Join(what="participants.tsv", rows=30, matched_rows=28, others=29, matched_others=28).told
    'participants.tsv: 28 of 30 rows have scans, 28 of 29 people with scans have a row'
    """

    what: str
    rows: int
    matched_rows: int
    others: int
    matched_others: int
    row: str = "rows"
    other: str = "people with scans"

    @property
    def told(self) -> str:
        """One line."""
        return (
            f"{self.what}: {self.matched_rows} of {self.rows} {self.row} have scans, "
            f"{self.matched_others} of {self.others} {self.other} have a row"
        )

    @property
    def hardly(self) -> bool:
        """Whether fewer than half of what could match does."""
        return 2 * min(self.matched_rows, self.matched_others) < min(self.rows, self.others)
