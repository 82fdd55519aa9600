"""Tables of every key, made from the descriptions beside the code, so that neither can drift."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from common import catalogue
from common.settings import keys
from common.study import Study

_PLUGGED = {"data": "kinds", "backbone": "backbones", "objective": "objectives"}


def study_keys() -> str:
    """Every key of a study file as a Markdown table, plug-ins after the common ones."""
    rows = [row for row in keys(Study) if row[0] not in _PLUGGED]
    for section, shelf in _PLUGGED.items():
        for name in catalogue.names(shelf):  # type: ignore[arg-type]
            found = catalogue.load(shelf, name)  # type: ignore[arg-type]
            model = found.Study if shelf == "kinds" else found.Settings
            rows += _marked(keys(model, f"{section}."), name)
    return table(rows)


def site_keys(site: Any) -> str:
    """Every key of a site file as a Markdown table; `site` is the site file's model."""
    rows = [row for row in keys(site) if row[0] not in ("data", "file")]
    for name in catalogue.names("kinds"):
        rows += _marked(keys(catalogue.load("kinds", name).Site, "data."), name)
    return table(rows)


def table(rows: Iterable[tuple[str, str, str]]) -> str:
    """A Markdown table of key, default and meaning."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | `{default}` | {text} |" for key, default, text in rows]
    return "\n".join(lines)


def _marked(rows: Iterable[tuple[str, str, str]], name: str) -> list[tuple[str, str, str]]:
    return [(key, default, f"({name}) {text}") for key, default, text in rows]
