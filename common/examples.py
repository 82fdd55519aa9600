"""A commented example of a settings table, made from its model, so that any plug-in has one."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_COMMENT_AT: Final = 32  # characters from the line's start, where the entry is shorter
_WIDTH: Final = 100


def example(model: type[BaseModel], section: str, **given: object) -> str:
    """The text of `[section]`: what is required, and what a reader would want to know of.

    Keys in `given` have that value; a required key has its field's first example, or an empty value
    to fill in. An optional key is shown if its field has an example: as it is if that is the
    default, else behind a `#`.
    """
    return "\n".join([f"[{section}]", *_lines(model, given)]) + "\n"


def toml(value: Any) -> str:
    """A value as TOML on one line.

    >>> print(toml({"a": [1, 2.5], "b": True, "c-d": "x"}))
    {a = [1, 2.5], b = true, c-d = "x"}
    """
    if isinstance(value, dict):
        pairs = (f"{_key(str(key))} = {toml(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _lines(model: type[BaseModel], given: dict[str, object]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        examples = field.examples or []
        if name in given:
            entry = f"{name} = {toml(given[name])}"
        elif field.is_required():
            entry = f"{name} = {toml(examples[0] if examples else _empty(field))}"
        elif examples:
            default = field.get_default(call_default_factory=True)
            hidden = "" if toml(examples[0]) == toml(default) else "# "
            entry = f"{hidden}{name} = {toml(examples[0])}"
        else:
            continue
        line = f"{entry:<{_COMMENT_AT}} # {field.description}" if field.description else entry
        if len(line) > _WIDTH:
            yield from textwrap.wrap(f"# {field.description}", _WIDTH, subsequent_indent="# ")
            line = entry
        yield line


def _empty(field: FieldInfo) -> Any:
    """A value of a required key's type, to be filled in."""
    kinds = str(field.annotation)
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        return choices[0]
    if "dict" in kinds:
        return {}
    if "tuple" in kinds or "list" in kinds:
        return []
    return 0 if "int" in kinds or "float" in kinds else ""


def _key(name: str) -> str:
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isascii() and bare.isalnum() else json.dumps(name)
