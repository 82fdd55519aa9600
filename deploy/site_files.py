"""One data set that holds several sites becomes one site file for each value of its site column."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w

from client.data.tables import open_table, plain
from client.site import load_site
from common import catalogue
from common.errors import SettingError
from common.runtime.durable import write_atomically
from common.settings import checked, read_toml
from common.study import Study


def write_site_files(study: Study, pattern: Path, data: Path, by: str, out: Path) -> list[Path]:
    """Write `OUT/<site>/site.toml` for every site of the study, all reading the same data.

    Parameters
    ----------
    pattern : a site file without name, role and rows; its paths are relative to `data`
    by : the column that names the site; values match the study's names in lower case

    Raises
    ------
    SettingError
        If the study names a site that the column does not hold, or holds in two spellings.
    """
    table = read_toml(pattern)
    place = next((key for key in ("table", "root") if key in table.get("data", {})), None)
    if place is None:
        raise SettingError(
            f"{pattern} has neither data.table nor data.root; it must say which data"
        )
    source = (data / str(table["data"][place])).resolve()
    values = _named(_values(source, by), by, source)
    named = dict.fromkeys(study.sites.train, "train") | dict.fromkeys(
        study.sites.heldout, "heldout"
    )
    missing = sorted(named.keys() - values.keys())
    if missing:
        raise SettingError(
            f"column {by} of {source} has no {', '.join(missing)}; "
            f"it has {', '.join(sorted(values))}"
        )
    return [
        _write(out / name / "site.toml", table, place, source, name, role, {by: values[name]})
        for name, role in named.items()
    ]


def name_of(value: str) -> str:
    """A site's name as studies write it.

    >>> name_of("Berlin Margulies")
    'berlin-margulies'
    """
    return re.sub(r"[^a-z0-9_-]+", "-", value.lower()).strip("-")


def _write(
    path: Path, table: dict[str, Any], place: str, source: Path, name: str, role: str, rows: Any
) -> Path:
    filled = {**table, "name": name, "role": role}
    filled["data"] = {**table["data"], place: str(source), "rows": rows}
    checked(
        catalogue.load("kinds", filled["data"]["kind"]).Site, filled["data"], file=path, at="data"
    )
    write_atomically(path, tomli_w.dumps(filled).encode())
    load_site(path)
    return path


def _named(values: Iterable[str], by: str, source: Path) -> dict[str, str]:
    """Each entry by the site's name that it makes."""
    found: dict[str, str] = {}
    for value in values:
        other = found.setdefault(name_of(value), value)
        if other != value:
            raise SettingError(
                f'column {by} of {source} has "{other}" and "{value}", which would both be the '
                f'site "{name_of(value)}"; spell them alike if they are one, and apart if they are '
                f"two"
            )
    return found


def _values(source: Path, by: str) -> list[str]:
    """Every entry of the column, in the table's order; 1 and 1.0 are one."""
    table = open_table(source / "participants.tsv" if source.is_dir() else source)
    place = table.column(by)
    entries = {plain(line[place]): line[place] for line in table if not line.fault}
    return [entry for entry in entries.values() if entry]
