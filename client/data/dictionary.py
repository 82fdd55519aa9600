"""What a data set itself says of its columns (participants.json), held against the site file.

Nothing is taken from it: the site file decides. Where the two contradict each other, one is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from client.data.finding import Finding, Findings
from client.data.tables import plain
from client.site import Column
from common.protocol.bounded_json import parsed
from common.sections import Target

_LARGEST: Final = 4 << 20  # bytes
_DAYS: Final = {  # one spelling of each unit of time, in days
    "year": 365.25,
    "month": 365.25 / 12,
    "week": 7.0,
    "day": 1.0,
}
_ALIKE: Final = 0.02  # a month is 30 days to some
_SEXES: Final = {"f": "female", "woman": "female", "m": "male", "man": "male"}


def sidecar(table: Path) -> Path:
    """The description beside a table: `participants.json` for `participants.tsv`.

    >>> sidecar(Path("data/participants.tsv.gz")).as_posix()
    'data/participants.json'
    """
    return table.with_name(table.name.removesuffix(".gz")).with_suffix(".json")


def read_dictionary(path: Path, inside: Path, findings: Findings) -> dict[str, Any]:
    """What the file says of each column; empty without one. One that is bad costs a note."""
    try:
        if not path.is_file():
            return {}
        if not path.resolve().is_relative_to(inside.resolve()):
            raise ValueError("it is a link out of the data folder")
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is larger than 4 MiB")
        found = parsed(path.read_text(encoding="utf-8-sig"))
        if not isinstance(found, dict):
            raise ValueError("it is no table of columns")  # noqa: TRY004  one reason among others
    except (OSError, ValueError) as error:
        what = "is not text in UTF-8" if isinstance(error, UnicodeDecodeError) else error
        findings.append(Finding(what=path.name, problem=f"cannot be used: {what}"))
        return {}
    return {name: about for name, about in found.items() if isinstance(about, dict)}


def contradictions(
    targets: Mapping[str, Target], columns: Mapping[str, Column], dictionary: Mapping[str, Any]
) -> Iterator[Finding]:
    """Where the data set's own words contradict what the site file says of a column."""
    for name, column in columns.items():
        about = dictionary.get(column.column)
        target = targets.get(name)
        if not isinstance(about, dict) or target is None:
            continue
        problem = _unit(about, target, column) or _codes(about, target, column)
        if problem:
            yield Finding(what=f"targets.{name}", problem=problem)


def _unit(about: Mapping[str, Any], target: Target, column: Column) -> str:
    said = about.get("Units")
    if target.kind != "regression" or not isinstance(said, str) or not said.strip():
        return ""
    theirs, ours = _time(said), _time(target.unit)
    if theirs is None or ours is None:
        same = said.strip().casefold() == target.unit.strip().casefold()
        if same or column.factor != 1.0 or not target.unit:
            return ""
        return (
            f'the data set says that "{column.column}" is in "{said[:40]}", the study wants '
            f"{target.unit}; set factor if they differ"
        )
    factor = theirs / ours
    if abs(column.factor / factor - 1) <= _ALIKE:
        return ""
    return (
        f'the data set says that "{column.column}" is in "{said[:40]}", the study wants '
        f"{target.unit}: factor would be {factor:.4g}, and is {column.factor:g}"
    )


def _time(unit: str) -> float | None:
    """Days in a unit of time, in whatever number or abbreviation."""
    word = unit.strip().casefold().rstrip(".")
    word = re.sub(r"[^a-z].*", "", word)  # "years (at scan)"
    short = {"y": "year", "yr": "year", "yrs": "year", "a": "year", "mo": "month", "mos": "month",
             "mth": "month", "w": "week", "wk": "week", "d": "day"}  # fmt: skip
    return _DAYS.get(short.get(word, word.removesuffix("s")))


def _codes(about: Mapping[str, Any], target: Target, column: Column) -> str:
    levels = about.get("Levels")
    if target.kind == "regression" or not isinstance(levels, dict):
        return ""
    ours = {plain(code): word for code, word in column.codes.items()} or {
        plain(word): word for word in target.classes
    }
    classes = {word.casefold(): word for word in target.classes}
    for code, said in levels.items():
        text = said.get("Description", "") if isinstance(said, dict) else said
        word = _class(str(text), classes)
        own = ours.get(plain(str(code)))
        if word and own and word != own:
            return (
                f'the data set says that "{column.column}" {str(code)[:20]} is "{str(text)[:40]}", '
                f"the site file says {own}"
            )
    return ""


def _class(text: str, classes: Mapping[str, str]) -> str | None:
    """The study's class that a description means, if it plainly means one."""
    words = [_SEXES.get(word, word) for word in re.findall(r"[^\W_]+", text.casefold())]
    whole = classes.get(text.strip().casefold())
    found = {classes[word] for word in words if word in classes}
    return whole or (found.pop() if len(found) == 1 else None)
