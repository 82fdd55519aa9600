"""What the tables of a BIDS data set say of its people: participants.tsv and sub-*_sessions.tsv.

What holds for a person and what holds for one of her visits are kept apart: a scan whose visit has
no row is never given another visit's age.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.data.finding import Finding, Findings, Join
from client.data.identity import ambiguous, bids_participant, bids_session, session_place
from client.data.readers.bids import ScanFile, Scans
from client.data.tables import Filtered, TextTable, nearest, open_table
from common.errors import DataError, reason

_MOST_HINTS: Final = 20

Entries = Mapping[str, str]


@dataclass(slots=True)
class People:
    """Entries by participant, after the row filter; what was wrong there.

    rows: what holds for a person. visits: what holds for one of her sessions.
    """

    rows: dict[str, Entries] = field(default_factory=dict)
    visits: dict[str, dict[str, Entries]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)  # rows that contradict each other or are broken
    elsewhere: set[str] = field(default_factory=set)  # another site's, by the row filter
    columns: tuple[str, ...] = ()
    findings: Findings = field(default_factory=Findings)

    def entries(self, participant: str, session: str) -> Entries:
        """What is known of a scan of a participant at a session ("" without one)."""
        own, visits = self.rows.get(participant, {}), self.visits.get(participant)
        if not visits:
            return own
        visit = visits.get(session)
        if visit is None and not session and len(visits) == 1:
            (visit,) = visits.values()
        if visit is None:
            differing = {name for row in visits.values() for name in row}
            return {name: cell for name, cell in own.items() if name not in differing}
        return {**own, **visit}


def people_with_scans(
    home: Path, scans: Scans, wanted: Mapping[str, str], columns: frozenset[str]
) -> tuple[People, list[ScanFile], tuple[Join, ...]]:
    """The people of a data set, the scans of those that are the site's, and how the two fit.

    What is odd is added to the findings of `scans`.

    Raises
    ------
    DataError
        If the row filter names a column that participants.tsv lacks.
    """
    people = read_people(home / "participants.tsv", wanted, columns)
    join, unmatched = joined(people, scans, bool(wanted))
    files = [
        scan
        for scan in scans.files
        if scan.participant not in people.refused
        and (not wanted or scan.participant in people.rows)
    ]
    visits = read_visits(people, home, files, columns)
    scans.findings.extend(people.findings.told())
    scans.findings.extend(unmatched.told())
    if visits.hardly:
        names = [f"{who}/{when}" for who in people.visits for when in people.visits[who]]
        taken = [f"{scan.participant}/{scan.session}".rstrip("/") for scan in files]
        scans.findings.append(hardly(visits, names, taken))
    return people, files, tuple(one for one in (join, visits) if one.rows)


def read_people(path: Path, wanted: Mapping[str, str], columns: frozenset[str]) -> People:
    """The rows of participants.tsv that belong to the site; whatever is wrong becomes a finding.

    Of each row `columns` are kept. With a column `session_id`, a row is about one visit.

    Raises
    ------
    DataError
        If the row filter names a column that the table lacks: then no row can be told apart.
    """
    people = People()
    try:
        table = open_table(path, path.parent)
        who = table.column("participant_id")
    except DataError as error:
        problem = f"{error}; scans have no labels"
        people.findings.append(Finding(what=path.name, problem=problem, error=bool(columns)))
        return people
    people.columns = table.columns
    filtered = Filtered(
        {table.column(name): value for name, value in wanted.items()}, table.columns
    )
    try:
        _read_rows(table, who, filtered, columns, people)
    except DataError as error:  # damaged further down: what was read before is kept
        people.findings.append(
            Finding(what=path.name, problem=str(error), left_out=True, error=True)
        )
    people.findings.extend(filtered.findings(path.name))
    return people


def read_visits(
    people: People, home: Path, scans: Sequence[ScanFile], columns: frozenset[str]
) -> Join:
    """Add what the sessions tables say; how many of their rows and of the scans fit."""
    sessions: dict[str, set[str]] = {}
    for scan in scans:
        sessions.setdefault(scan.participant, set()).add(scan.session)
    for participant in sessions:
        path = home / participant / f"{participant}_sessions.tsv"
        try:
            rows = _session_rows(path, home, columns, people)
        except DataError as error:
            problem = f"{error}; nothing is known of this person's scans"
            people.findings.append(Finding(what=path.name, problem=problem, error=True))
            # which entries differ between her visits, nobody can tell
            people.rows.pop(participant, None)
            people.visits.pop(participant, None)
            continue
        if rows:
            visits = people.visits.setdefault(participant, {})
            for session, row in rows.items():
                visits[session] = {**visits.get(session, {}), **row}
    _tell_of_visits(people, sessions)
    told = {(who, when) for who in sessions for when in people.visits.get(who, {})}
    taken = {
        (who, when)
        for who in {who for who, _ in told}
        for when in sessions[who]
        if when or len(people.visits[who]) > 1
    }
    both = len(told & taken)
    return Join(
        what="sessions",
        rows=len(told),
        matched_rows=both,
        others=len(taken),
        matched_others=both,
        other="visits with scans",
    )


def joined(people: People, scans: Scans, filtered: bool) -> tuple[Join, Findings]:
    """How participants.tsv and the scans' people fit, with whom only one of them knows."""
    scanned = dict.fromkeys(scan.participant for scan in scans.files)
    if filtered:
        scanned = {name: None for name in scanned if name not in people.elsewhere}
    both = len(people.rows.keys() & scanned.keys())
    join = Join(
        what="participants.tsv",
        rows=len(people.rows),
        matched_rows=both,
        others=len(scanned),
        matched_others=both,
    )
    findings = _absent(people, scans, scanned, filtered)
    if join.hardly:
        findings.append(hardly(join, list(people.rows), list(scanned)))
    return join, findings


def hardly(join: Join, rows: Sequence[str], others: Sequence[str]) -> Finding:
    """The error of a join that matches nothing, or almost; with a pair that may be meant."""
    there = set(others)
    unmatched = next((row for row in rows if row not in there), rows[0])
    problem = (
        f"hardly any of its {join.rows} rows belongs to one of {join.others} {join.other}; "
        f'of "{unmatched}" there is none; {nearest(unmatched, others)}'
    )
    return Finding(what=join.what, problem=problem, error=True)


def _read_rows(
    table: TextTable, who: int, filtered: Filtered, columns: frozenset[str], people: People
) -> None:
    when = session_place(table.columns)
    kept = table.picker(columns)
    first: dict[tuple[str, str], int] = {}
    rows: dict[str, dict[str, Entries]] = {}  # by participant and session
    for line in table:
        what = f"{table.path.name}, line {line.number}"
        participant = bids_participant(line[who])
        if line.fault or participant is None:
            label = f'participant_id is "{line[who][:40]}"; sub-LABEL is needed'
            problem = line.fault or label
            people.findings.append(Finding(what=what, problem=problem, left_out=True))
            if participant:
                people.refused.add(participant)
            continue
        if not filtered.passes(line):
            people.elsewhere.add(participant)
            continue
        session = "" if when is None else bids_session(line[when])
        row, visits = kept(line), rows.setdefault(participant, {})
        if session in visits:
            problem = f"{participant} stands in line {first[participant, session]} already, "
            _twice(people, participant, what, problem, same=visits[session] == row)
            continue
        visits[session] = row
        first[participant, session] = line.number
    for name, other in ambiguous(rows).items():
        problem = f'"{name}" and "{other}" may be one person; give each one spelling'
        people.findings.append(Finding(what=table.path.name, problem=problem, left_out=True))
        people.refused.add(name)
    for participant, visits in rows.items():
        if participant not in people.refused:
            _keep(people, participant, visits)


def _twice(people: People, participant: str, what: str, problem: str, *, same: bool) -> None:
    how = "with the same entries"
    if not same:
        how = "with other entries; left out (if they are visits, a column session_id must say so)"
        people.refused.add(participant)
    people.findings.append(Finding(what=what, problem=problem + how, left_out=not same))


def _keep(people: People, participant: str, visits: Mapping[str, Entries]) -> None:
    """What all rows of a person agree on is hers; what differs is the visit's."""
    base = dict(visits.get("", {}))
    told = [row for session, row in visits.items() if session]
    if not told:
        people.rows[participant] = base
        return
    common = {
        name: cell for name, cell in told[0].items() if all(row[name] == cell for row in told)
    }
    people.rows[participant] = {**base, **common}
    people.visits[participant] = {
        session: {name: cell for name, cell in row.items() if name not in common}
        for session, row in visits.items()
        if session
    }


def _session_rows(
    path: Path, home: Path, columns: frozenset[str], people: People
) -> dict[str, Entries]:
    """Rows of a sub-*_sessions.tsv by session: what differs between a participant's visits."""
    try:
        path.lstat()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from None
    table = open_table(path, home)
    place = table.column("session_id")
    if not set(people.columns).issuperset(table.columns):
        people.columns = tuple(dict.fromkeys((*people.columns, *table.columns)))
    kept = table.picker(columns)
    rows: dict[str, Entries] = {}
    contradicted: set[str] = set()
    for line in table:
        what, session = f"{path.name}, line {line.number}", bids_session(line[place])
        row, problem = kept(line), line.fault
        if not problem and not session:
            problem = "names no session"
        elif not problem and session in rows and rows[session] != row:
            problem = f"{session} has another row with other entries; neither is used"
            contradicted.add(session)
        if problem:
            people.findings.append(Finding(what=what, problem=problem, left_out=True))
            continue
        rows[session] = row
    return {
        session: dict.fromkeys(row, "") if session in contradicted else row
        for session, row in rows.items()
    }


def _tell_of_visits(people: People, sessions: Mapping[str, set[str]]) -> None:
    """Scans whose visit has no row, and people of several visits whom no table tells apart."""
    alike = 0
    for participant, taken in sessions.items():
        visits = people.visits.get(participant)
        if not visits:
            alike += len(taken) > 1 and participant in people.rows
            continue
        for session in sorted(taken - visits.keys()):
            if session or len(visits) > 1:
                problem = (
                    f"has a row for {', '.join(sorted(visits)[:6])}, none for this visit; what "
                    f"differs between visits is not known of it"
                )
                what = f"{participant}/{session or '(a scan without ses-LABEL in its name)'}"
                people.findings.append(Finding(what=what, problem=problem))
    if alike:
        problem = (
            f"{alike} people have scans of several sessions and no table of them; each scan gets "
            f"the entries of participants.tsv"
        )
        people.findings.append(Finding(what="sessions", problem=problem))


def _absent(people: People, scans: Scans, scanned: Mapping[str, None], filtered: bool) -> Findings:
    """Participants without a scan, and scans without a row; a refused scan is told already."""
    findings, hinted = Findings(), 0
    for participant in people.rows:
        if participant not in scanned and participant not in scans.refused:
            findings.append(
                Finding(what=participant, problem="has a row but no scan", left_out=True)
            )
    rows = list(people.rows)
    known = people.rows.keys() | people.refused | people.elsewhere
    for participant in scanned:
        if people.columns and participant not in known:
            hinted += 1  # each hint compares one name with all others
            hint = nearest(participant, rows) if rows and hinted <= _MOST_HINTS else ""
            problem = "has scans but no row in participants.tsv" + (f"; {hint}" if hint else "")
            findings.append(Finding(what=participant, problem=problem, left_out=filtered))
    return findings
