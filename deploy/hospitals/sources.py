"""Site files of sources that are made on the fly: nothing else of them is ever on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import tomli_w

from client.site import load_site
from client.templates import columns_of
from common import catalogue
from common.errors import FolderError
from common.runtime.durable import write_atomically
from deploy.hospitals.folders import check_names

KINDS: Final = {"synthetic-t1w": "people", "synthetic-video": "clips"}  # and how many of what

_PATTERN: Final = """\
name = "{name}"
role = "{role}"
secret = "synthetic"  # nobody to protect, and the same people train each time

{data}
{targets}
[policy]
minimum_cohort = 1
minimum_support = 1   # nobody is behind these numbers; for real people 10
"""


def write_sources(
    out: Path, *, kind: str, names: Sequence[str], heldout: Sequence[str], number: int, seed: int
) -> list[Path]:
    """Write `OUT/<name>/site.toml` for each name; a file that is there already is left as it is.

    Every source has a seed of its own, made of `seed` and its name, so adding one changes no other.

    Raises
    ------
    SettingError
        Before anything is written.
    FolderError
        Where a file of that name is another source's, or none.
    """
    check_names(names, heldout)
    files = {}
    for name in names:
        own = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4])
        data = {"kind": kind, "seed": own, KINDS[kind]: number}
        files[name] = _PATTERN.format(
            name=name,
            role="heldout" if name in heldout else "train",
            data=tomli_w.dumps({"data": data}),
            targets=columns_of(catalogue.load("kinds", kind)),
        )
        _check_kept(out / name / "site.toml", data)
    for name, text in files.items():
        path = out / name / "site.toml"
        if not path.exists():
            write_atomically(path, text.encode())
    return [out / name / "site.toml" for name in names]


def _check_kept(path: Path, data: dict[str, Any]) -> None:
    """Refuse a site file that is about other data."""
    if path.exists():
        found = load_site(path).data.model_dump(mode="json")
        if found != data:
            raise FolderError(
                f"{path} is about {found}, {data} was asked for; choose another folder or delete it"
            )
