"""Which volume shows which state, and what becomes of events that cannot be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.data.functional.events import Event, Events, label_volumes, read_events, renamed
from common.errors import ScanError
from tests.client.data.functional.runs import write_events

ALL = frozenset[str]()


def events(*rows: tuple[float, float, str]) -> Events:
    return Events(rows=tuple(Event(onset_s=a, duration_s=b, state=c) for a, b, c in rows))


def naive(rows: Events, volumes: int, tr_s: float, shift_s: float) -> list[int]:
    """By looking at every volume's middle."""
    shown = []
    for volume in range(volumes):
        middle = (volume + 0.5) * tr_s
        if any(e.onset_s <= middle - shift_s < e.onset_s + e.duration_s for e in rows.rows):
            shown.append(volume)
    return shown


@pytest.mark.parametrize("tr_s", [0.72, 2.0, 2.5])
@pytest.mark.parametrize("shift_s", [0.0, 4.5, 6.0])
def test_a_volume_shows_the_event_that_its_middle_lies_in(tr_s: float, shift_s: float) -> None:
    """Off by one volume, and every state is taught a neighbour's."""
    rows = events((3.0, 7.5, "a"), (20.1, 11.0, "b"), (40.0, 5.0, "a"))
    found = label_volumes(rows, 80, tr_s, shift_s=shift_s, wanted=ALL)
    assert list(found.volumes) == naive(rows, 80, tr_s, shift_s)


def test_a_shift_moves_every_label_by_as_many_volumes() -> None:
    """The response is late by seconds, whatever the repetition time."""
    rows = events((10.0, 10.0, "a"))
    early = label_volumes(rows, 30, 2.0, shift_s=0.0, wanted=ALL).volumes
    late = label_volumes(rows, 30, 2.0, shift_s=6.0, wanted=ALL).volumes
    assert late == tuple(volume + 3 for volume in early)


def test_a_volume_in_two_states_shows_neither_and_that_is_told() -> None:
    """A label by the table's order would be chance."""
    rows = events((0.0, 6.0, "a"), (4.0, 6.0, "b"), (20.0, 4.0, "a"), (22.0, 4.0, "a"))
    found = label_volumes(rows, 20, 2.0, shift_s=0.0, wanted=ALL)
    assert found.volumes == (0, 1, 3, 4, 10, 11, 12)
    assert found.notes[-1] == "1 volumes lie in two states at once and show neither"


def test_events_behind_the_runs_end_are_named_and_the_others_kept() -> None:
    """A run that was broken off is still good up to there."""
    rows = events((4.0, 4.0, "a"), (10.0, 4.0, "b"), (50.0, 4.0, "a"))
    found = label_volumes(rows, 20, 2.0, shift_s=0.0, wanted=ALL)
    assert found.events == (0, 0, 1, 1)
    assert found.notes == (
        "1 of its 3 events begin behind its end at 40 s (the last at 50 s); they are left out",
    )


def test_events_of_another_unit_leave_the_run_out() -> None:
    """Onsets in milliseconds would leave the first one, and label nothing else."""
    rows = events((4000.0, 4000.0, "a"), (10_000.0, 4000.0, "b"))
    with pytest.raises(ScanError, match="2 of its 2 events begin behind its end at 40 s"):
        label_volumes(rows, 20, 2.0, shift_s=0.0, wanted=ALL)


def test_trial_types_of_no_state_are_no_samples_and_are_named() -> None:
    """A misspelt state would otherwise be missing in silence."""
    rows = events((0.0, 4.0, "face"), (6.0, 4.0, "Face"), (12.0, 4.0, "response"))
    found = label_volumes(rows, 20, 2.0, shift_s=0.0, wanted=frozenset({"face"}))
    assert found.events == (0, 0)
    assert "no state of the study: Face (1), response (1)" in found.notes[0]
    same = label_volumes(
        renamed(rows, {"Face": "face"}), 20, 2.0, shift_s=0.0, wanted=frozenset({"face"})
    )
    assert same.events == (0, 0, 1, 1)


def test_events_too_short_for_a_volume_are_counted() -> None:
    """A table of button presses labels nothing, and somebody must be told why."""
    found = label_volumes(
        events((4.9, 0.0, "a"), (8.0, 4.0, "a")), 20, 2.0, shift_s=0.0, wanted=ALL
    )
    assert found.events == (1, 1)
    assert "1 events have no volume of their own (the first at 4.9 s for 0 s)" in found.notes


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("n/a", 5, "a"), (9, 5, "b")], 'line 2: onset is "n/a"'),
        ([(1, -5, "a"), (9, 5, "b")], 'line 2: duration is "-5"'),
        ([("1e999", 5, "a"), (9, 5, "b")], 'line 2: onset is "1e999"'),
        ([(1, "2.000,5", "a"), (9, 5, "b")], 'line 2: duration is "2.000,5"'),
    ],
)
def test_rows_that_say_no_time_are_counted_with_the_first(
    tmp_path: Path, rows: list[tuple[object, ...]], told: str
) -> None:
    """One bad row loses one event."""
    write_events(tmp_path / "a_events.tsv", rows)
    found = read_events(tmp_path / "a_events.tsv", tmp_path, "trial_type")
    assert found.states == ("b",)
    assert found.notes[0].startswith("1 events are left out")
    assert told in found.notes[0]


def test_a_table_without_a_state_or_its_column_is_refused(tmp_path: Path) -> None:
    """With the name of the column that was looked for, and the nearest."""
    write_events(tmp_path / "a_events.tsv", [(1, 5, "n/a")])
    with pytest.raises(ScanError, match="names no event in trial_type"):
        read_events(tmp_path / "a_events.tsv", tmp_path, "trial_type")
    write_events(tmp_path / "b_events.tsv", column="trial-type")
    with pytest.raises(ScanError, match='did you mean "trial-type"'):
        read_events(tmp_path / "b_events.tsv", tmp_path, "trial_type")
