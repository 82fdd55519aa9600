"""The folder of a synthetic hospital: whose it is, whether it is whole, what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from common.errors import FolderError, SettingError
from common.protocol.bounded_json import parsed

MARKER: Final = ".callosum-hospital.json"  # written last
DESCRIPTION: Final = "dataset_description.json"  # written first
_SITE_FOLDER: Final = ".callosum"  # what a site keeps beside its file is not ours to judge


def check_names(names: Sequence[str], some: Sequence[str], what: str = "heldout") -> None:
    """Refuse names that no site may have, that stand twice, or that only `what` has.

    Raises
    ------
    SettingError
        Naming them.
    """
    strangers = sorted(set(some) - set(names))
    if strangers:
        raise SettingError(f"{what} names {', '.join(strangers)}; each must also be in names")
    if len(set(names)) < len(names):
        raise SettingError(f"names lists a hospital twice: {', '.join(names)}")
    for name in names:
        if not name.isascii() or not name.replace("-", "").isalnum() or name != name.lower():
            raise SettingError(f"{name!r} is not a hospital's name; use a-z, 0-9 and hyphens")


def is_complete(folder: Path, settings: dict[str, object]) -> bool:
    """Whether nothing is left to write.

    Raises
    ------
    FolderError
        If the folder is not this hospital's.
    """
    if not any(path.is_file() for path in folder.rglob("*") if path.suffix != ".partial"):
        return False
    ours = {"bids", "site.toml", MARKER, _SITE_FOLDER}
    strangers = sorted({path.name for path in folder.iterdir()} - ours)
    if strangers:
        raise FolderError(
            f"{folder} holds {strangers[0]}, which is not ours; choose another folder"
        )
    marker, first = folder / MARKER, folder / "bids" / DESCRIPTION
    for file in (marker, first):
        if file.exists():
            found = _hospital_settings(file)
            if found != settings:
                raise FolderError(f"{folder} holds {_difference(found, settings)}")
            return file == marker
    raise FolderError(f"{folder} holds files but no synthetic hospital; choose another folder")


def _hospital_settings(file: Path) -> object:
    try:
        content = parsed(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("HospitalSettings") if isinstance(content, dict) else None


def _difference(found: object, wanted: dict[str, object]) -> str:
    if not isinstance(found, dict):
        return "another dataset; choose another folder"
    keys = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    there, asked = (", ".join(f"{key} = {s.get(key)}" for key in keys) for s in (found, wanted))
    return f"a hospital with {there}, but {asked} was asked for; choose another folder or delete it"


def as_written(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings as JSON gives them back."""
    return dict(json.loads(json.dumps(settings)))  # noqa: TID251  our own


def identity(person: int) -> str:
    """A person's name, from 0."""
    return f"sub-{person + 1:04d}"


def description(
    name: str, kind: str, settings: Mapping[str, object] | None = None
) -> dict[str, object]:
    """A data set's dataset_description.json; with `settings` it tells whose the folder is.

    kind: raw or derivative.
    """
    content: dict[str, object] = {
        "Name": f"Synthetic hospital {name}",
        "BIDSVersion": "1.9.0",
        "DatasetType": kind,
        "GeneratedBy": [
            {"Name": "callosum hospitals", "Description": "Synthetic data, of no real person"}
        ],
    }
    return content if settings is None else {**content, "HospitalSettings": settings}
