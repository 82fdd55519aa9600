"""Run every federation below a folder calmly, then killed and resumed; print what went wrong.

`python killed_prototypes.py FOLDER [MOMENT:PLACE ...]`, see `tests/deploy/killed_run.py`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import tomli_w

from tests.deploy import killed_run
from tests.plugins import federations


def allow(site: Path, *kinds: str) -> None:
    """Let a site carry out more kinds of order than it does by itself."""
    import tomllib

    table = tomllib.loads(site.read_text())
    orders = ["census", "settle", "train", "finetune", "judge", *kinds]
    site.write_text(tomli_w.dumps({**table, "policy": {"orders": orders, "minimum_support": 4}}))


def main(folder: Path, places: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    federations.chained(folder / federations.CHAIN)
    everyone = sorted(path for path in folder.iterdir() if path.is_dir())
    for number, federation in enumerate(everyone):
        made = folder.parent / f"{folder.name}-work"
        # each is killed at one of the places: all of them at all would take twice as long
        found[federation.name] = killed_run.main(federation, made, [places[number % len(places)]])
        shutil.move(made, federation / "resumed")  # the last of them, like a calm one to the bit
    lenient = folder / "LoRA"
    work = killed_run.Folders(lenient, folder.parent / f"{folder.name}-work")
    for name in ("alpha", "beta"):
        allow(work.work / "sites" / name / "site.toml", "explain", "send")
    assert work.resumed() == 0, work.log.read_text()
    shutil.move(work.work, lenient / "allowed")
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:])))
