"""What a participant, a session and a scan are called, for every kind and table.

Splits, minimum cohorts and joins all go by these names. One person under two names would train and
test; two people under one name would share a label. So there is one spelling for each, and two that
nobody can tell apart are refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_LABEL: Final = re.compile(r"[0-9A-Za-z+_-]{1,64}")
SESSIONS: Final = ("session_id", "session")  # columns that name one
_LONGEST: Final = 200  # letters of a name in a table
# sub-01_ses-2, 01_ses-2_run-1, and FreeSurfer's sub-01_ses-2.long.sub-01
_VISIT: Final = re.compile(
    r"(?P<who>.+?)_ses-(?P<ses>[0-9A-Za-z+]+)(?P<more>(_[a-z]+-[0-9A-Za-z+]+)*(_[0-9A-Za-z]+)?)"
    r"(\.(long|cross)\..+)?"
)
_LIKE_A_VISIT: Final = re.compile(
    r"(?P<who>.+)[_. -](\d{1,2}|(v|visit|t|tp|time|wave|scan|m|y)\d{1,3}|bl|baseline|fu|pre|post)",
    re.IGNORECASE,
)
_MOST_VISITS: Final = 12  # more names with one beginning are a count of people


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """Whose scan a row or file is, at which session ("" without one), and which of that session."""

    participant: str
    session: str = ""
    more: str = ""

    @property
    def scan(self) -> str:
        """The scan for people, such as "sub-01/ses-2"."""
        return "/".join(part for part in (self.participant, self.session, self.more) if part)


def bids_participant(text: str) -> str | None:
    """`sub-01` for "sub-01" or "01"; None for what can be no participant of a BIDS data set.

    >>> bids_participant("01"), bids_participant("sub-01"), bids_participant("../../etc")
    ('sub-01', 'sub-01', None)
    """
    label = text.removeprefix("sub-")
    return f"sub-{label}" if _LABEL.fullmatch(label) else None


def bids_session(text: str) -> str:
    """`ses-2` for "ses-2" or "2"; "" for an entry that names none.

    >>> bids_session("2"), bids_session("ses-2"), bids_session("n/a")
    ('ses-2', 'ses-2', '')
    """
    label = text.strip().removeprefix("ses-")
    return "" if label.casefold() in ("", "n/a") else f"ses-{label}"


def session_place(columns: Sequence[str]) -> int | None:
    """Which column of a table says the session, if one does.

    >>> session_place(["participant_id", "session"]), session_place(["age"])
    (1, None)
    """
    return next((columns.index(name) for name in SESSIONS if columns.count(name) == 1), None)


def name_in_table(text: str, session: str = "") -> Name | None:
    """Whom a cell of a table names; None where it names nobody.

    >>> name_in_table("sub-01_ses-2"), name_in_table("A 17", "2").scan
    (Name(participant='sub-01', session='ses-2', more=''), 'A 17/ses-2')
    """
    if not text or not text.isprintable() or len(text) > _LONGEST:
        return None
    found = _VISIT.fullmatch(text)
    if found is None:
        return Name(participant=text, session=bids_session(session))
    own = bids_session(session) or f"ses-{found['ses']}"
    return Name(participant=found["who"], session=own, more=found["more"].strip("_"))


def folded(participant: str) -> str:
    """What two spellings of one name have in common: no case, no `sub-`, no leading zeros.

    >>> folded("sub-007") == folded("7"), folded("NYU_a") == folded("nyu_A")
    (True, True)
    """
    text = unicodedata.normalize("NFKC", participant).casefold().strip()
    text = text.removeprefix("sub-")
    return re.sub(r"\d+", lambda digits: digits[0].lstrip("0") or "0", text)


def ambiguous(participants: Iterable[str]) -> dict[str, str]:
    """Names that another one could be a spelling of, each with that other.

    >>> ambiguous(["a1", "A01", "b"])
    {'A01': 'a1', 'a1': 'A01'}
    """
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for name in participants:
        other = first.setdefault(folded(name), name)
        if other != name:
            found[name] = other
            found.setdefault(other, name)
    return found


def like_visits(participants: Iterable[str]) -> tuple[str, str] | None:
    """Two names that look like visits of one person, if most of a table's names do.

    >>> like_visits(["a_1", "a_2", "b_1", "b_2"]), like_visits(["sub-01", "sub-02"])
    (('a_1', 'a_2'), None)
    """
    names = list(dict.fromkeys(participants))
    visits: dict[str, list[str]] = {}
    for name in names:
        found = _LIKE_A_VISIT.fullmatch(name)
        if found and found["who"] != "sub":
            visits.setdefault(found["who"], []).append(name)
    several = [group for group in visits.values() if 1 < len(group) <= _MOST_VISITS]
    if len(several) < 2 or 2 * sum(map(len, several)) < len(names):
        return None
    return several[0][0], several[0][1]
