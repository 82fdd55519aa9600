"""A run's confounds table: what is regressed out of it, and how far its person moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.data.finding import Finding
from client.data.tables import TextTable, number, open_table
from common.errors import DataError, ScanError

_DISPLACEMENT: Final = "framewise_displacement"
_SHIFTS: Final = ("trans_x", "trans_y", "trans_z")  # mm
_TURNS: Final = ("rot_x", "rot_y", "rot_z")  # radians
_HEAD_MM: Final = 50.0  # radius on which Power et al. 2012 measure turns

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confounds:
    """Of a run of T volumes: columns (T, K), and by how much each moved from the last, (T,) mm.

    displacement_mm: None where the table has neither that nor the six motion parameters.
    """

    columns: Floats
    displacement_mm: Floats | None
    notes: tuple[str, ...] = ()


def taken_confounds(
    path: str, inside: str, wanted: tuple[str, ...], volumes: int, most_motion_mm: float
) -> Confounds | None:
    """A run's confounds, unless it has none ("") and the study wants none; 0 mm sets no limit.

    Raises
    ------
    ScanError
        If some are wanted, or the person moved too far.
    """
    if not path:
        if wanted:
            raise ScanError(f"has no confounds table; the study takes {', '.join(wanted[:4])} out")
        return None
    found = read_confounds(Path(path), Path(inside), wanted, volumes)
    moved = found.displacement_mm
    if moved is not None and most_motion_mm and moved.mean() > most_motion_mm:
        raise ScanError(
            f"its person moved {moved.mean():.2f} mm from volume to volume (mean framewise "
            f"displacement); at most {most_motion_mm:g} mm are taken"
        )
    return found


def unknown_motion(tables: Sequence[str]) -> Iterator[Finding]:
    """One finding on all runs, by their tables, of which nobody can tell how far people moved."""
    without = sum(1 for table in tables if not table)
    if without:
        problem = (
            f"{without} of {len(tables)} runs have no confounds table; how far people moved in "
            "them is not known, and no limit holds"
        )
        yield Finding(what="motion", problem=problem)


def read_confounds(path: Path, inside: Path, wanted: tuple[str, ...], volumes: int) -> Confounds:
    """`wanted` columns and motion of a table with a row a volume.

    Columns that begin with n/a, as differences between volumes do, begin with their second entry.

    Raises
    ------
    ScanError
        If a column or row is missing, or an entry behind the first row is no number.
    """
    try:
        table = open_table(path, inside)
        motion = _motion_columns(table)
        names = tuple(dict.fromkeys((*wanted, *motion)))
        found = _numbers(table, names, volumes)
    except DataError as error:
        raise ScanError(f"its confounds cannot be used: {error}") from None
    if len(found) != volumes:
        raise ScanError(
            f"its confounds table {path.name} has {len(found)} rows; the run has {volumes} volumes"
        )
    empty = np.isnan(found[0])
    begins = [name for name, gap in zip(names, empty, strict=True) if gap and name in wanted]
    found[0, empty] = found[1, empty] if len(found) > 1 else 0
    notes: tuple[str, ...] = ()
    if begins:
        notes = (f"{', '.join(begins)} begin with n/a and take their second entry",)
    if not motion:
        notes += ("its confounds table tells no motion, and no limit on it holds",)
    columns = dict(zip(names, found.T, strict=True))
    return Confounds(
        columns=found[:, : len(wanted)],
        displacement_mm=_displacement(columns, motion, first_unknown=bool(empty[-1:].any())),
        notes=notes,
    )


def _motion_columns(table: TextTable) -> tuple[str, ...]:
    if _DISPLACEMENT in table.columns:
        return (_DISPLACEMENT,)
    return (*_SHIFTS, *_TURNS) if {*_SHIFTS, *_TURNS} <= set(table.columns) else ()


def _numbers(table: TextTable, names: tuple[str, ...], volumes: int) -> Floats:
    """(T, K) entries; NaN for n/a in the first row alone."""
    places = [table.column(name) for name in names]
    rows: list[list[float]] = []
    for line in table:
        if len(rows) == volumes:
            raise ScanError(f"its confounds table has more rows than the run's {volumes} volumes")
        if line.fault:
            raise ScanError(f"its confounds table, line {line.number}: {line.fault}")
        values = [number(cell) for cell in line.cells(places)]
        for name, value, place in zip(names, values, places, strict=True):
            if value is None and (rows or line[place].casefold() not in ("", "n/a", "nan")):
                raise ScanError(
                    f'its confounds table has "{line[place][:20]}" for {name} in line '
                    f"{line.number}; a number is needed"
                )
        rows.append([np.nan if value is None else value for value in values])
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


def _displacement(
    columns: dict[str, Floats], motion: tuple[str, ...], *, first_unknown: bool
) -> Floats | None:
    """Framewise displacement as the table has it, or made of the motion parameters."""
    if not motion:
        return None
    if motion == (_DISPLACEMENT,):
        moved = columns[_DISPLACEMENT].copy()
        if first_unknown:
            moved[0] = 0  # nothing is before the first volume
        return moved
    shifts = np.stack([columns[name] for name in _SHIFTS], 1)
    turns = np.stack([columns[name] for name in _TURNS], 1) * _HEAD_MM
    steps = np.abs(np.diff(np.hstack([shifts, turns]), axis=0)).sum(1)
    return np.concatenate([[0.0], steps])
