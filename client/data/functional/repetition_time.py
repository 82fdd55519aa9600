"""The time between two volumes, by a run's header and by the JSON file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from common.errors import ScanError, reason
from common.protocol.bounded_json import parsed

_CREDIBLE_S: Final = (0.05, 20.0)
_ALIKE: Final = 0.01  # headers round
_LARGEST: Final = 4 << 20  # bytes of a side file
_LARGEST_S: Final = 1e9
_KEY: Final = "RepetitionTime"


def agreed_repetition_time(header_s: float, side_s: float | None) -> tuple[float, tuple[str, ...]]:
    """Seconds between volumes, with notes on what was mended; `side_s` None where no file says it.

    A thousand times a credible time is one that was written in milliseconds.

    >>> agreed_repetition_time(2.5, 2500.0)
    (2.5, ('the file beside it says RepetitionTime 2500, in milliseconds; taken as 2.5 s',))

    Raises
    ------
    ScanError
        If neither is credible, or the two contradict each other.
    """
    header, header_note = _mended(header_s, "its header says a repetition time of")
    side, side_note = _mended(side_s or 0.0, f"the file beside it says {_KEY}")
    notes = tuple(note for note in (header_note, side_note) if note)
    low, high = _CREDIBLE_S
    if header is None and side is None:
        said = "no file beside it says it" if side_s is None else f"the file beside it {side_s:g}"
        raise ScanError(
            f"its header says a repetition time of {header_s:g} s, {said}; {low:g} to {high:g} s "
            f"are needed: write {_KEY}, in seconds, into its JSON file"
        )
    if header is not None and side is not None and abs(header / side - 1) > _ALIKE:
        raise ScanError(
            f"its header says a repetition time of {header:g} s, the file beside it {side:g} s; "
            "which volume shows what hangs on it: correct the wrong one"
        )
    if side_s is not None and side is None:
        notes += (f"the file beside it says {_KEY} {side_s:g}; the header's {header:g} s are used",)
    if header is None:
        notes += (f"its header says no repetition time; {side:g} s of the file beside it are used",)
    return (header if header is not None else side) or 0.0, notes


def read_side_file(path: Path) -> tuple[float | None, str]:
    """The repetition time that a JSON file says, or None; and why it cannot be read, if so."""
    try:
        if path.stat().st_size > _LARGEST:
            return None, f"{path.name} is larger than 4 MiB and is not read"
        found = parsed(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        return None, f"{path.name} cannot be read: {reason(error)}"
    except ValueError as error:
        said = "it is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else error
        return None, f"{path.name} cannot be used: {said}"
    said_s = found.get(_KEY) if isinstance(found, dict) else None
    if said_s is None:
        return None, ""
    number = isinstance(said_s, int | float) and not isinstance(said_s, bool)
    if not number or not abs(said_s) <= _LARGEST_S:
        return None, f"{path.name} says {_KEY} {str(said_s)[:20]}; seconds are needed"
    return float(said_s), ""


def _mended(value: float, said: str) -> tuple[float | None, str]:
    low, high = _CREDIBLE_S
    if low <= value <= high:
        return value, ""
    if low <= value / 1000 <= high:
        return value / 1000, f"{said} {value:g}, in milliseconds; taken as {value / 1000:g} s"
    return None, ""
