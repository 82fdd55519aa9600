"""Other settings of one study, from a file: what a careful user tries before calling privacy dear.

    study = "fcon1000-private.toml"     # beside this file
    [[settings]]
    name = "short"
    pretraining = {rounds = 10, learning_rate = 0.3}

A table's keys take the place of the study's; a table that names something else, as another
backbone, takes the place of the whole table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from common.sections import Name
from common.settings import Table, checked, read_toml

Keys = dict[str, Any]


class Settings(Table):
    """One `[[settings]]` table: a name, and the tables of the study that are otherwise."""

    name: Name = Field(description="Follows the study's name.")
    backbone: Keys = Field(default_factory=dict)
    objective: Keys = Field(default_factory=dict)
    pretraining: Keys = Field(default_factory=dict)
    aggregation: Keys = Field(default_factory=dict)
    privacy: Keys = Field(default_factory=dict)
    data: Keys = Field(default_factory=dict)

    def of(self, table: dict[str, Any]) -> dict[str, Any]:
        """The study's tables with these settings."""
        found = {**table, "name": f"{table['name']}-{self.name}"}
        for part in type(self).model_fields.keys() - {"name"}:
            changed = getattr(self, part)
            whole = "name" in changed or "kind" in changed
            if changed:
                found[part] = changed if whole else {**table.get(part, {}), **changed}
        return found


class SettingsFile(Table):
    """A file of settings."""

    study: str = Field(description="The study file, relative to this one.")
    settings: tuple[Settings, ...] = Field(min_length=1)


def variants(file: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The study's file and tables, as they are and then by each of the settings.

    Raises
    ------
    SettingError
        Naming the file and the fault.
    """
    found = checked(SettingsFile, read_toml(file), file=file)
    study = file.parent / found.study
    table = read_toml(study)
    yield study, table
    for one in found.settings:
        yield study, one.of(table)
