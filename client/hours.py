"""Hours at which a site works for studies, such as "Mon-Fri 19:00-07:00", in its own local time.

A window belongs to the day on which it opens: "Fri 19:00-07:00" ends on Saturday morning. It holds
its first minute and not its last. Clocks are read off the wall, so a night in which they change is
an hour longer or shorter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY: Final = 24 * 60  # minutes
_FORM: Final = re.compile(r"(?:(\S+) )?(\d\d):(\d\d)-(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True)
class Window:
    """Days on which it opens (Monday is 0), and minutes after that day's midnight."""

    days: frozenset[int]
    start: int
    end: int  # beyond 24 hours where it ends on the next day

    def holds(self, moment: datetime) -> bool:
        """Whether it is open at a local time."""
        day, minute = moment.weekday(), moment.hour * 60 + moment.minute
        today = day in self.days and self.start <= minute < self.end
        return today or ((day - 1) % 7 in self.days and minute + _DAY < self.end)


def open_at(windows: Iterable[str], moment: datetime) -> bool:
    """Whether one of `windows` is open at a local time; always, where there are none.

    >>> monday_morning = datetime(2024, 1, 1, 6, 59)
    >>> open_at(["Sun 19:00-07:00"], monday_morning), open_at(["Mon 19:00-07:00"], monday_morning)
    (True, False)
    """
    parsed = [parse(window) for window in windows]
    return not parsed or any(window.holds(moment) for window in parsed)


def parse(text: str) -> Window:
    """A window from its text: days, if not all, then start and end.

    >>> parse("Fri-Sun 22:30-24:00").days == {4, 5, 6}
    True

    Raises
    ------
    ValueError
        Naming the part that is at fault.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(
            'the form is "Mon-Fri 19:00-07:00", "Sat,Sun 00:00-24:00" or "19:00-07:00"'
        )
    days, *numbers = found.groups()
    start, end = _minutes(*numbers[:2]), _minutes(*numbers[2:])
    if start == _DAY:
        raise ValueError("it starts at 24:00; write 00:00 of the next day")
    if start == end:
        raise ValueError("it ends when it starts; a whole day is 00:00-24:00")
    return Window(_days(days), start, end if end > start else end + _DAY)


def check_window(text: str) -> str:
    """Refuse a text that is no window; the text itself stays what a person wrote."""
    parse(text)
    return text


def _minutes(hours: str, minutes: str) -> int:
    total = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or total > _DAY:
        raise ValueError(f"{hours}:{minutes} is no time of day; 00:00 to 24:00 is needed")
    return total


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        opening = _day(first)
        length = (_day(last) - opening) % 7 if "-" in part else 0  # Fri-Mon goes over the weekend
        days |= {(opening + i) % 7 for i in range(length + 1)}
    return frozenset(days)


def _day(name: str) -> int:
    if name not in _DAYS:
        raise ValueError(f'"{name}" is no day; {", ".join(_DAYS)} are')
    return _DAYS.index(name)
