"""A report's JSON text as plain values, looked at by length and form before anything is made of it.

A checker that lists every fault of a hostile text repeats the text in each of them: 0.9 MB became
4 GB of memory and 912 MB of log. Here the first fault ends the reading, and no message is longer
than a line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, Final

from pydantic import ValidationError

from common.errors import Refusal

LONGEST_TEXT: Final = 64 << 20  # bytes; whatever a study asks for
MOST_ROWS: Final = 1 << 18  # of measurements; below `_MOST_PARTS`, as each is a table
_LONGEST_WORD: Final = 200  # characters; of a key, and of any text in a report
_MOST_ENTRIES: Final = 4096  # of a table of numbers
_MOST_NUMBERS: Final = 1 << 16  # of one entry
_MOST_OTHERS: Final = 64  # entries of anything else
_MOST_PARTS: Final = 300_000  # lists and tables; a receipt has three for an array
_NUMBERS: Final = ("support", "participants", "counts")


def told(value: object, longest: int = 80) -> str:
    r"""What others sent, as it may stand in a message: plain ASCII, and not much of it.

    >>> print(told(chr(27) + "[8m"), len(told("x" * 1000)))
    '\x1b[8m' 80
    """
    head = value[:longest] if isinstance(value, str) else value
    return ascii(head)[:longest]


def parsed(text: str | bytes) -> Any:
    """The value that a JSON text from outside holds, if it is cheap to hold.

    Raises
    ------
    ValueError
        If it is no JSON, is nested too deeply, or has too many lists and tables in it: each takes
        a hundred times the two bytes that it is written with.
    """
    if isinstance(text, str):
        parts = text.count("[") + text.count("{")
    else:
        parts = text.count(b"[") + text.count(b"{")
    if parts > _MOST_PARTS:
        raise ValueError(f"it holds over {_MOST_PARTS:,} lists and tables")
    try:
        return json.loads(text)  # noqa: TID251
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def table_of(
    text: str | bytes, keys: Collection[str], row_keys: Collection[str], most_rows: int
) -> dict[str, Any]:
    """The table that `text` holds, if it is one that a report may be, and cheap to check further.

    Parameters
    ----------
    keys, row_keys : those that a report, and a row of its `measurements`, may have

    Raises
    ------
    Refusal
        REPORT_MALFORMED, SUPPORT or NOT_FINITE.
    """
    try:
        found = parsed(text)
    except ValueError:
        raise Refusal("REPORT_MALFORMED", "it is no JSON") from None
    table = _table(found, keys, "the report")
    rows = table.get("measurements", [])
    if not isinstance(rows, list) or len(rows) > most_rows:
        raise Refusal("REPORT_MALFORMED", f"measurements is no list of at most {most_rows}")
    for row in rows:
        for value in _table(row, row_keys, "a measurement").values():
            _word(value, "measurements")
    for name, value in table.items():
        if name in _NUMBERS:
            _numbers(name, value)
        elif name != "measurements":
            _other(name, value)
    return table


def fault_of(error: ValidationError) -> str:
    """Where the first fault is and of which kind; never what was found there."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(told(part) for part in first["loc"][:4])
    return f"{error.error_count()} faults; {place[:200]}: {first['type']}"


def _table(found: object, keys: Collection[str], what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Refusal("REPORT_MALFORMED", f"{what} is no table")
    for key in found:
        if key not in keys:
            raise Refusal("REPORT_MALFORMED", f"{what} has an unknown key {told(key)}")
    return found


def _numbers(name: str, found: object) -> None:
    """A table of numbers, or of lists of them; `counts` alone may hold lists."""
    code = "REPORT_MALFORMED" if name == "counts" else "SUPPORT"
    if not isinstance(found, dict) or len(found) > _MOST_ENTRIES:
        raise Refusal(code, f"{name} is no table of at most {_MOST_ENTRIES}")
    for key, value in found.items():
        if len(key) > _LONGEST_WORD:
            raise Refusal(code, f"{name} has an entry {told(key)}")
        several = name == "counts" and isinstance(value, list)
        if several and len(value) > _MOST_NUMBERS:
            raise Refusal(code, f"{name}.{told(key)} has {len(value)} numbers")
        for number in value if several else [value]:
            _number(number, code, f"{name}.{told(key)}")


def _number(value: object, code: str, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(code, f"{place} is no number")
    if isinstance(value, float) and not math.isfinite(value):
        raise Refusal("NOT_FINITE", f"{place} is not finite")


def _other(name: str, found: object) -> None:
    """One value, or a few of them, in up to two tables or lists inside each other."""
    inside: list[object] = [found]
    for _ in range(2):
        inside = [one for value in inside for one in _values(name, value)]
    for value in inside:
        _word(value, name)


def _values(name: str, found: object) -> list[object]:
    if not isinstance(found, list | dict):
        return [found]
    if len(found) > _MOST_OTHERS:
        raise Refusal("REPORT_MALFORMED", f"{name} has {len(found)} entries")
    return [*found, *found.values()] if isinstance(found, Mapping) else found


def _word(value: object, name: str) -> None:
    if isinstance(value, list | dict) or (isinstance(value, str) and len(value) > _LONGEST_WORD):
        raise Refusal("REPORT_MALFORMED", f"{name} holds more than a word or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise Refusal("NOT_FINITE", f"{name} holds a number that is not finite")
