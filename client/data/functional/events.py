"""What a run's events table says of its volumes: which state its person was in, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.data.tables import number, open_table
from common.errors import DataError, ScanError

_NONE: Final = ("", "n/a")
_MOST_NAMED: Final = 6
_MOST_EVENTS: Final = 100_000
_LONGEST_S: Final = 1e6  # onsets in microseconds are still told as they stand


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """From when to when after the first volume a person was in a state, in the site's word."""

    onset_s: float
    duration_s: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """The events of a run in the table's order; rows without a state are none."""

    rows: tuple[Event, ...]
    notes: tuple[str, ...] = ()

    @property
    def states(self) -> tuple[str, ...]:
        """The states, each once, in order of appearance."""
        return tuple(dict.fromkeys(event.state for event in self.rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Volumes of a run that show one state: their numbers from 0, and the event of each."""

    volumes: tuple[int, ...]
    events: tuple[int, ...]
    notes: tuple[str, ...] = ()


def read_events(path: Path, inside: Path, column: str) -> Events:
    """The events of a table with columns onset, duration (seconds) and `column`.

    Raises
    ------
    ScanError
        If it cannot be read, or no row names a state and when it was.
    """
    try:
        table = open_table(path, inside)
        places = [table.column(name) for name in ("onset", "duration", column)]
        rows: list[Event] = []
        odd: list[str] = []
        for line in table:
            onset, duration, state = line.cells(places)
            if not line.fault and state in _NONE:
                continue
            event, problem = _event(onset, duration, state)
            if line.fault or event is None:
                odd.append(f"line {line.number}: {line.fault or problem}")
            else:
                rows.append(event)
            if len(rows) + len(odd) > _MOST_EVENTS:
                raise ScanError(f"its events table names over {_MOST_EVENTS:,} events")
    except DataError as error:
        raise ScanError(f"its events table cannot be used: {error}") from None
    if not rows:
        why = f"; {odd[0]}" if odd else ""
        raise ScanError(f"its events table {path.name} names no event in {column}{why}")
    notes = (f"{len(odd)} events are left out ({odd[0]})",) if odd else ()
    return Events(rows=tuple(rows), notes=notes)


def renamed(events: Events, words: Mapping[str, str]) -> Events:
    """The events in the study's words for the states."""
    rows = tuple(
        Event(
            onset_s=event.onset_s,
            duration_s=event.duration_s,
            state=words.get(event.state, event.state),
        )
        for event in events.rows
    )
    return Events(rows=rows, notes=events.notes)


def label_volumes(
    events: Events,
    volumes: int,
    repetition_time_s: float,
    *,
    shift_s: float,
    wanted: frozenset[str],
) -> Labelled:
    """Which volumes show which event: those whose middle lies in it, `shift_s` later.

    `wanted` are the states that count; empty, all do. A volume in two events of different states
    shows neither.

    >>> events = Events(rows=(Event(onset_s=2.0, duration_s=4.0, state="face"),))
    >>> label_volumes(events, 10, 2.0, shift_s=4.0, wanted=frozenset()).volumes
    (3, 4)

    Raises
    ------
    ScanError
        If most events begin behind the run's end: then they are of another run, or in another unit.
    """
    end_s = volumes * repetition_time_s
    late = [event for event in events.rows if event.onset_s >= end_s]
    if 2 * len(late) > len(events.rows):
        raise ScanError(
            f"{len(late)} of its {len(events.rows)} events begin behind its end at {end_s:g} s, "
            f"the first at {late[0].onset_s:g} s; are they in seconds, and of this run?"
        )
    first, torn = _shown(events.rows, volumes, repetition_time_s, shift_s)
    shown = {int(volume): int(first[volume]) for volume in np.flatnonzero(first >= 0)}
    counted = [
        volume
        for volume in shown
        if not torn[volume] and (not wanted or events.rows[shown[volume]].state in wanted)
    ]
    return Labelled(
        volumes=tuple(counted),
        events=tuple(shown[volume] for volume in counted),
        notes=(
            *_told_late(late, events, end_s),
            *_told_others(events.rows, wanted),
            *_told_unseen(events.rows, shown, end_s, wanted),
            *(
                (f"{torn.sum()} volumes lie in two states at once and show neither",)
                if torn.any()
                else ()
            ),
        ),
    )


def _shown(
    rows: Sequence[Event], volumes: int, repetition_time_s: float, shift_s: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The first event whose time holds a volume's middle, or -1; and whether states differ there.

    Runs of volumes at once: 100,000 events that each last all of a run took 14 s one by one.
    """
    middles = (np.arange(volumes) + 0.5) * repetition_time_s
    begins = np.array([event.onset_s for event in rows]) + shift_s
    ends = begins + np.array([event.duration_s for event in rows])
    from_, to = np.searchsorted(middles, begins), np.searchsorted(middles, ends)
    codes = {state: code for code, state in enumerate(dict.fromkeys(one.state for one in rows))}
    first, state = np.full(volumes, -1), np.full(volumes, -1)
    torn = np.zeros(volumes, dtype=bool)
    for index in np.flatnonzero(from_ < to).tolist():
        here = slice(from_[index], to[index])
        code, free = codes[rows[index].state], first[here] < 0
        torn[here] |= ~free & (state[here] != code)
        first[here][free], state[here][free] = index, code
    return first, torn


def _event(onset: str, duration: str, state: str) -> tuple[Event | None, str]:
    """The event, or why a row is none."""
    begin, length = number(onset), number(duration)
    if begin is None or abs(begin) > _LONGEST_S:
        return None, f'onset is "{onset[:20]}"; seconds are needed'
    if length is None or not 0 <= length <= _LONGEST_S:
        return None, f'duration is "{duration[:20]}"; seconds are needed'
    return Event(onset_s=begin, duration_s=length, state=state), ""


def _told_torn(volumes: int) -> tuple[str, ...]:
    found = f"{volumes} volumes lie in two states at once and show neither"
    return (found,) if volumes else ()


def _told_late(late: Sequence[Event], events: Events, end_s: float) -> tuple[str, ...]:
    if not late:
        return ()
    last = max(event.onset_s for event in late)
    found = f"{len(late)} of its {len(events.rows)} events begin behind its end at {end_s:g} s"
    return (f"{found} (the last at {last:g} s); they are left out",)


def _told_others(rows: Sequence[Event], wanted: frozenset[str]) -> tuple[str, ...]:
    """Trial types that are no state of the study, which may be a misspelt one."""
    others = Counter(event.state for event in rows if wanted and event.state not in wanted)
    if not others:
        return ()
    named = ", ".join(f"{state[:40]} ({times})" for state, times in others.most_common(_MOST_NAMED))
    more = ", ..." if len(others) > _MOST_NAMED else ""
    return (f"trial types that are no state of the study: {named}{more}",)


def _told_unseen(
    rows: Sequence[Event], shown: Mapping[int, int], end_s: float, wanted: frozenset[str]
) -> tuple[str, ...]:
    """Events that no volume shows: too short, or too near the run's end."""
    seen = set(shown.values())
    unseen = [
        event
        for index, event in enumerate(rows)
        if index not in seen and event.onset_s < end_s and (not wanted or event.state in wanted)
    ]
    if not unseen:
        return ()
    first = f"the first at {unseen[0].onset_s:g} s for {unseen[0].duration_s:g} s"
    return (f"{len(unseen)} events have no volume of their own ({first})",)
