"""Synthetic hospitals of time series by region, written as BIDS derivatives.

Every other hospital is a clinic, where everyone rests and half are patients; the others have people
in two of four states and no diagnosis. Whoever is held out is a clinic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from client.data.synthesis.connectomes import (
    Clinic,
    Floats,
    Modes,
    Person,
    draw_people,
    series,
    shared_modes,
)
from client.site import load_site
from common.errors import SettingError, StorageError
from common.runtime.durable import write_atomically
from deploy.hospitals.folders import (
    DESCRIPTION,
    MARKER,
    as_written,
    check_names,
    description,
    identity,
    is_complete,
)

_PATTERN: Final = """\
name = "{name}"
role = "{role}"
secret = "synthetic"  # nobody to protect, and the same people train each time

[data]
kind = "connectome"
root = "bids"  # relative to this file
files = "sub-{{participant}}/func/*_timeseries.tsv"

[targets.age]
column = "age"

[targets.sex]
column = "sex"
codes = {{F = "female", M = "male"}}

{own}
[policy]
minimum_support = 4   # fewest participants behind any number that leaves; for real people 10
"""
_CLINICAL: Final = """\
[targets.state]
value = "rest"  # nothing else is acquired here

[targets.diagnosis]
column = "diagnosis"
"""
_RESEARCH: Final = """\
[targets.state]
column = "task"  # of the runs' names
"""


def write_connectomes(
    out: Path,
    *,
    names: Sequence[str],
    heldout: Sequence[str],
    participants: int,
    strength: float = 1.0,
    seed: int = 0,
    shared: bool = True,
    advance: Callable[[], None] | None = None,
) -> list[Path]:
    """Write `OUT/<name>/site.toml` and `bids` for each name; finish what an earlier call began.

    Raises
    ------
    SettingError
        Before anything is written.
    FolderError
        Where a folder of that name holds other settings or something else.
    StorageError
        Where the disk is full or cannot be written.
    """
    check_names(names, heldout)
    if participants < 1 or strength < 0:
        raise SettingError("participants must be 1 or more, and strength 0 or more")
    modes = shared_modes(seed, shared=shared)
    clinics = [
        Clinic(
            name=name,
            participants=participants,
            seed=seed,
            clinical=name in heldout or place % 2 == 1,
            strength=strength,
            shared_modes=shared,
        )
        for place, name in enumerate(names)
    ]
    whole = {one.name: is_complete(out / one.name, as_written(asdict(one))) for one in clinics}
    try:
        for clinic in clinics:
            steps: Iterable[object] = range(participants)
            if not whole[clinic.name]:
                steps = _write(out / clinic.name, clinic, modes, clinic.name in heldout)
            for _ in steps:
                if advance is not None:
                    advance()
    except OSError as error:
        raise StorageError(f"the hospitals cannot be written to {out}: {error}") from error
    return [out / name / "site.toml" for name in names]


def _write(
    folder: Path,
    clinic: Clinic,
    modes: Modes,
    heldout: bool,
) -> Iterator[None]:
    """One hospital, yielding after each participant: first what it is, last that it is whole."""
    bids, people = folder / "bids", draw_people(clinic)
    settings = as_written(asdict(clinic))
    write_atomically(bids / DESCRIPTION, _json(description(clinic.name, "derivative", settings)))
    write_atomically(bids / "participants.tsv", _table(clinic, people))
    for number, person in enumerate(people):
        for run in range(len(person.states)):
            file = bids / _place(number, person, run)
            if not file.exists():
                write_atomically(file, _text(series(clinic, modes, person, number, run)))
        yield
    text = _PATTERN.format(
        name=clinic.name,
        role="heldout" if heldout else "train",
        own=_CLINICAL if clinic.clinical else _RESEARCH,
    )
    if not (folder / "site.toml").exists():
        write_atomically(folder / "site.toml", text.encode())
    load_site(folder / "site.toml")
    write_atomically(folder / MARKER, _json({"HospitalSettings": settings}))


def _place(number: int, person: Person, run: int) -> Path:
    who = identity(number)
    return Path(who, "func", f"{who}_task-{person.states[run]}_atlas-drawn_timeseries.tsv")


def _table(clinic: Clinic, people: Sequence[Person]) -> bytes:
    header = ["participant_id", "age", "sex", *(["diagnosis"] if clinic.clinical else [])]
    rows = [header]
    for number, person in enumerate(people):
        row = [identity(number), f"{person.age:g}", "M" if person.male else "F"]
        rows.append([*row, "ad" if person.patient else "control"] if clinic.clinical else row)
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def _text(values: Floats) -> bytes:
    """A header of regions, then a line for each time point, in three decimals."""
    header = "\t".join(f"r{region + 1}" for region in range(values.shape[1]))
    rows = ("\t".join(f"{value:.3f}" for value in row) for row in values.tolist())
    return ("\n".join([header, *rows]) + "\n").encode()


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
