"""Hours are what a person meant by them: past midnight, over the weekend, and not a minute more."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.hours import open_at, parse

DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
WEEK = 7 * 24 * 60  # minutes
MONDAY = datetime.fromisoformat("2024-01-01")  # local time, as hours are


def naive_minutes(text: str) -> set[int]:
    """Minutes of a week in which a window is open, found by walking through each of its nights."""
    words = text.split(" ")
    clock = words[-1]
    (from_hour, from_minute), (to_hour, to_minute) = (
        map(int, part.split(":")) for part in clock.split("-")
    )
    opening = []
    for part in words[0].split(",") if len(words) == 2 else DAYS:
        first, *last = part.split("-")
        day = DAYS.index(first)
        opening.append(day)
        while last and DAYS[day] != last[0]:
            day = (day + 1) % 7
            opening.append(day)
    found = set()
    for day in opening:
        minute = from_hour * 60 + from_minute
        while minute % (24 * 60) != (to_hour * 60 + to_minute) % (24 * 60):
            found.add((day * 24 * 60 + minute) % WEEK)
            minute += 1
        if (from_hour, from_minute, to_hour) == (0, 0, 24):  # the walk above ends as it begins
            found |= {day * 24 * 60 + each for each in range(24 * 60)}
    return found


def clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


@st.composite
def windows(draw: st.DrawFn) -> str:
    day = st.sampled_from(DAYS)
    part = st.one_of(day, st.tuples(day, day).map("-".join))
    days = draw(st.one_of(st.just(""), st.lists(part, min_size=1, max_size=3).map(",".join)))
    start = draw(st.integers(0, 24 * 60 - 1))
    end = draw(st.integers(0, 24 * 60).filter(lambda minute: minute != start))
    return f"{days} {clock(start)}-{clock(end)}".strip()


@settings(max_examples=40, deadline=None)
@given(st.lists(windows(), min_size=1, max_size=3), st.lists(st.integers(0, WEEK - 1), max_size=30))
def test_windows_are_open_when_a_minute_by_minute_walk_says_so(texts, minutes):
    """Arithmetic over midnight and over Sunday is easily off by one; a walk is not."""
    naive = set().union(*(naive_minutes(text) for text in texts))
    for text in texts:  # the edges are where it goes wrong
        edges = naive_minutes(text)
        minutes += [
            (edge + step) % WEEK for edge in (min(edges), max(edges)) for step in (-1, 0, 1)
        ]
    for minute in minutes:
        assert open_at(texts, MONDAY + timedelta(minutes=minute)) == (minute in naive), minute


def test_every_minute_of_the_documented_windows_is_as_the_walk_says():
    """The two that the guide shows, through the whole week."""
    for text in (
        "Mon-Fri 19:00-07:00",
        "Sat,Sun 00:00-24:00",
        "Fri-Mon 22:30-06:15",
        "19:00-07:00",
    ):
        naive = naive_minutes(text)
        window = parse(text)
        found = {m for m in range(WEEK) if window.holds(MONDAY + timedelta(minutes=m))}
        assert found == naive, text


def test_no_window_means_always():
    """A site that says nothing about hours is not closed for ever."""
    assert open_at([], MONDAY)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the form is"),
        ("always", "the form is"),
        ("7:00-19:00", "the form is"),
        ("19.00-07.00", "the form is"),
        ("Mon - Fri 19:00-07:00", "the form is"),
        ("Mon-Fri 19:00-07:00 ", "the form is"),
        ("Mon-Fri", "the form is"),
        ("Mon-Fri 19:00\u201307:00", "the form is"),
        ("Mon-Fry 19:00-07:00", '"Fry" is no day; Mon, Tue'),
        ("mon 19:00-07:00", '"mon" is no day'),
        ("Mon,,Tue 19:00-07:00", '"" is no day'),
        ("Mon-Tue-Wed 19:00-07:00", '"Tue-Wed" is no day'),
        ("Mon 19:60-20:00", "19:60 is no time of day"),
        ("Mon 25:00-26:00", "25:00 is no time of day"),
        ("Mon 20:00-24:01", "24:01 is no time of day"),
        ("Mon 24:00-07:00", "it starts at 24:00"),
        ("Mon 08:00-08:00", "it ends when it starts"),
    ],
)
def test_a_fault_in_a_window_is_named(text, words):
    """Whoever mistypes a window must not learn of it from a round that ran at noon."""
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert words in str(caught.value)
