"""A TOML file becomes one checked, frozen value, or an error that says what to change and where."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import SettingError
from common.printable import is_printable, printable

_LARGEST_FILE = 4 << 20  # bytes; a study with a million feature names is a mistake, not a study
_MOST_VALUES = 300_000  # of all tables and lists together
_MOST_ENTRIES = 200_000  # of one list; a connectome of 600 regions has 179,700 edges
_MOST_FAULTS = 20  # that are told at once
_DEEPEST = 64  # parts of one dotted key; tomllib takes time by their square
_BETWEEN_KEYS = re.compile(r"[,=\[\]{}#\n]")
_BARE = r"""(?:"[^"]*"|'[^']*'|[\w-]+)"""
_KEY = rf"{_BARE}(?:\s*\.\s*{_BARE})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_KEY})\s*\]\]?\s*(?:#.*)?$")
_ENTRY = re.compile(rf"\s*({_KEY})\s*=")


class Table(BaseModel):
    """One table of a settings file: frozen, and closed to keys that nobody documented."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; say which file and line is at fault when it cannot be read."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise SettingError(f"{path} is larger than 4 MiB; this is not a settings file")
        text = path.read_text(encoding="utf-8-sig")
        if max(part.count(".") for part in _BETWEEN_KEYS.split(text)) > _DEEPEST:
            raise SettingError(f"{path} is not valid TOML: it is nested too deeply")
        return tomllib.loads(text)
    except FileNotFoundError:
        raise SettingError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read: {error}") from None
    except RecursionError:
        raise SettingError(f"{path} is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # not only TOMLDecodeError: a number of 5,000 digits
        raise SettingError(f"{path} is not valid TOML: {error}") from None


def checked(model: type[Checked], table: object, *, file: Path, at: str = "") -> Checked:
    """Check `table` against `model`; all faults at once, each with key, line and remedy.

    `at` is the dotted place of the table inside the file, e.g. ``"backbone"``.
    """
    if not isinstance(table, dict):
        raise SettingError(f"{at or 'the file'} must be a table of keys ({file})")
    for dotted, problem in _unshowable(table, at):
        raise SettingError(f"{dotted} {problem} ({file}{line_of(file, dotted)})")
    try:
        # strict: a file that says seed = "3" or rounds = true means something else than its reader
        return model.model_validate(with_tuples(table), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        faults = [_sentence(fault, model, file, at) for fault in found[:_MOST_FAULTS]]
        if len(found) > _MOST_FAULTS:
            faults.append(f"and {len(found) - _MOST_FAULTS} more ({file})")
        raise SettingError("\n".join(faults)) from None


def _unshowable(value: object, at: str) -> Iterator[tuple[str, str]]:
    """Where a table holds text that a screen would obey, or a list that nobody could read.

    What a person approves must be what she sees.
    """
    seen = 0
    waiting: list[tuple[str, object]] = [(at, value)]
    while waiting:
        place, found = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            yield at or "the file", f"holds over {_MOST_VALUES:,} values; fewer are read"
            return
        if isinstance(found, str) and not is_printable(found):
            hidden = next(one for one in found if not is_printable(one))
            yield place, f'holds "{printable(hidden)}", a character that is not shown; take it out'
        elif isinstance(found, dict):
            for key, item in reversed(found.items()):
                below = f"{place}.{key}" if place else str(key)
                waiting += [(below, item), (printable(below), str(key))]
        elif isinstance(found, list | tuple):
            if len(found) > _MOST_ENTRIES:
                yield place, f"lists {len(found):,} things; at most {_MOST_ENTRIES:,} are read"
            waiting += [(f"{place}.{n}", item) for n, item in reversed(list(enumerate(found)))]


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every documented key below `model` as (dotted key, default, description)."""
    for name, field in model.model_fields.items():
        # one of several tables is described by its own keys elsewhere
        inner = None if field.discriminator else _inner_model(field.annotation)
        dotted = f"{prefix}{name}"
        if inner is not None:
            many = get_origin(field.annotation) in (dict, tuple)  # of tables
            yield from keys(inner, f"{dotted}.NAME." if many else f"{dotted}.")
            continue
        default = (
            "required"
            if field.is_required()
            else _toml(field.get_default(call_default_factory=True))
        )
        yield dotted, default, field.description or ""


def line_of(file: Path, dotted: str) -> str:
    """`, line 31` for the key `dotted` in `file`, else for the nearest table around it."""
    try:
        places = _places(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        return ""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        number = places.get(".".join(parts[:length]))
        if number is not None:
            return f", line {number}"
    return ""


@lru_cache(maxsize=2)  # a file with many faults is looked through once
def _places(text: str) -> dict[str, int]:
    """Line number of every key and table header, by dotted name; entries of [[x]] are x.0, x.1."""
    places: dict[str, int] = {}
    table, entries = "", Counter[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        header, entry = _HEADER.match(line), _ENTRY.match(line)
        if header:
            table = _plain(header.group(2))
            if header.group(1) == "[[":
                entries[table] += 1
                table = f"{table}.{entries[table] - 1}"
            places.setdefault(table, number)
        elif entry:
            name = _plain(entry.group(1))
            places.setdefault(f"{table}.{name}" if table else name, number)
    return places


def _plain(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))


def with_tuples(value: Any) -> Any:
    """TOML and JSON have lists where our values have tuples."""
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(with_tuples(item) for item in value) if isinstance(value, list) else value


def _sentence(fault: Any, model: type[BaseModel], file: Path, at: str) -> str:
    places = [str(place) for place in fault["loc"]]
    dotted = ".".join([*([at] if at else []), *places])
    message = fault["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
    # a check of a whole table begins its message with the key that is at fault
    about = f"{dotted}.{message.split()[0]}" if dotted else message.split()[0]
    where = f"({file}{line_of(file, about)})"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, [str(place) for place in fault["loc"]][:-1])
        near = difflib.get_close_matches(places[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"{dotted} is not a known key; {hint} {where}"
    if fault["type"] == "missing":
        return f"{dotted} is missing; it is required {where}"
    found = fault["input"]
    if fault["type"] in ("model_type", "dict_type"):
        message = "a table of keys is needed"
    elif not places or isinstance(found, dict):
        return f"{dotted + ': ' if dotted else ''}{message} {where}"
    return f"{dotted} is {_toml(found)}; {message[0].lower()}{message[1:]} {where}"


def _known_keys(model: type[BaseModel], places: list[str]) -> list[str]:
    here: type[BaseModel] = model
    for place in places:
        field = here.model_fields.get(place)
        inner = _inner_model(field.annotation) if field else None
        if inner is not None:
            here = inner
    return list(here.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation if annotation.model_fields else None
    for argument in getattr(annotation, "__args__", ()):
        inner = _inner_model(argument)
        if inner is not None:
            return inner
    return None


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        shown = value if len(value) <= 60 else value[:57] + "..."
        return f'"{shown}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in list(value)[:8]) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in list(value.items())[:8]) + "}"
    return str(value)
