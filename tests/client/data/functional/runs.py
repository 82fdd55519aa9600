"""Writes functional runs as a BIDS folder: a brain that lights up left or right, on real NIfTI files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from client.data.functional.bold import BoldReader
from client.data.reader import Found, Prepared
from common.kinds.bold import Bold

SHAPE = (12, 14, 10)
SPACING_MM = 8.0
AFFINE = np.array([[8, 0, 0, -44.0], [0, 8, 0, -69.0], [0, 0, 8, -31.0], [0, 0, 0, 1]])
STATES = ("left", "right")
TR_S = 2.0
# four blocks of ten seconds, with rest between them
EVENTS = [(20 + 30 * n, 10, STATES[n % 2]) for n in range(4)]
VOLUMES = 80


def brain() -> np.ndarray:
    x, y, z = np.indices(SHAPE)
    middle = [(n - 1) / 2 for n in SHAPE]
    return sum(((a - c) / c) ** 2 for a, c in zip((x, y, z), middle, strict=True)) < 0.8


def lit(state: str) -> np.ndarray:
    """Where a state shows: a cube at the left or right."""
    where = np.zeros(SHAPE, dtype=bool)
    where[(slice(2, 5) if state == "left" else slice(7, 10)), 5:9, 3:7] = True
    return where


def series(volumes: int = VOLUMES, shift_s: float = 5.0, seed: int = 0) -> np.ndarray:
    """(X, Y, Z, T): a bright brain, drift, noise, and what the events light up."""
    random = np.random.default_rng(seed)
    t = np.arange(volumes)
    found = 1000.0 * brain()[..., None] + 3 * random.normal(size=(*SHAPE, volumes))
    found += brain()[..., None] * 0.5 * t
    for onset, duration, state in EVENTS:
        middles = (t + 0.5) * TR_S - shift_s
        on = (onset <= middles) & (middles < onset + duration)
        found += 20.0 * lit(state)[..., None] * on
    return found


def save(
    path: Path,
    voxels: np.ndarray,
    affine: np.ndarray = AFFINE,
    tr_s: float = TR_S,
    unit: str = "sec",
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(voxels, dtype=np.float32), affine)
    image.header.set_xyzt_units("mm", unit)
    if voxels.ndim > 3:
        image.header["pixdim"][4] = tr_s
    nib.save(image, path)


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, row)) for row in (header, *rows)]
    path.write_text("\n".join(lines) + "\n")


def write_events(
    path: Path, events: Sequence[Sequence[object]] = EVENTS, column: str = "trial_type"
) -> None:
    write_table(path, ("onset", "duration", column), events)


def write_run(
    root: Path, name: str = "sub-01_task-hands", voxels: np.ndarray | None = None, **more: Any
) -> Path:
    """A run with its events and JSON file; the path of the image."""
    folder = root / name.split("_", maxsplit=1)[0] / "func"
    path = folder / f"{name}_bold.nii.gz"
    save(path, series(seed=len(list(root.rglob("*_bold.nii.gz")))) if voxels is None else voxels,
         **{key: more[key] for key in ("affine", "tr_s", "unit") if key in more})  # fmt: skip
    write_events(folder / f"{name}_events.tsv", more.get("events", EVENTS))
    said = more.get("said", TR_S)
    if said is not None:
        (folder / f"{name}_bold.json").write_text(json.dumps({"RepetitionTime": said}))
    if more.get("mask", True):
        save(folder / f"{name}_desc-brain_mask.nii.gz", brain().astype(float))
    return path


def study(**keys: Any) -> Bold.Study:
    usual = {"shape": SHAPE, "spacing_mm": SPACING_MM, "align": "centre", "smoothing_mm": 0.0}
    return Bold.Study(kind="bold", **{**usual, "states": {"hand": STATES}, **keys})


def find(root: Path, agreed: Bold.Study | None = None, **keys: Any) -> Found:
    site = Bold.Site(kind="bold", **{"root": ".", **keys})
    return BoldReader.find(agreed or study(), site, root, frozenset({"hand", "age"}))


def prepared(root: Path, agreed: Bold.Study | None = None, **keys: Any) -> Prepared:
    """What the only usable run becomes."""
    (source,) = find(root, agreed, **keys).sources
    return BoldReader.prepare(agreed or study(), source)


def told(found: Found) -> dict[str, str]:
    return {finding.what: finding.problem for finding in found.findings}
