"""A site's own brain masks, found by the names that programs give them; one for each scan, or none.

| program | below the folder of masks |
|---|---|
| fMRIPrep | sub-1[/ses-2]/anat/sub-1[_ses-2][_run-1]_desc-brain_mask.nii.gz, in the scan's space |
| FreeSurfer, FastSurfer | sub-1[_ses-2 or /ses-2]/mri/mask.mgz, or else brainmask.mgz |
| HD-BET | SCAN_bet_mask.nii.gz or SCAN_mask.nii.gz, SCAN being sub-1_..._T1w |
| SynthStrip | SCAN_synthstrip_mask.nii.gz or ..._desc-synthstrip_mask.nii.gz |

The last two may lie in the folder itself, below sub-1[/ses-2], or in anat there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.data.anatomy import grid
from client.data.finding import Finding, Findings
from client.data.readers import mgh, nifti
from client.data.readers.bids import IMAGES, ScanFile, entities, stem_of
from client.data.readers.links import stamp_of
from common.errors import ScanError, reason
from common.printable import name_as_text

_OF_SCAN: Final = re.compile(r"(.+?)(_bet|_hdbet|_brain|_synthstrip|_desc-[a-z]+)?_mask")
_PROGRAMS: Final = ("brain", "synthstrip", "hdbet", "bet")  # desc- of a brain mask in BIDS
_SUBJECTS: Final = ("mask.mgz", "brainmask.mgz")  # in this order: the first is what a program chose
_MOST: Final = 0.8  # of a field of view, as of a head
_LEAST_ML: Final = 150.0

Mask = NDArray[np.bool_]


@dataclass(slots=True)
class Masks:
    """Mask and stamp by the scan's name; scans without one are findings."""

    found: dict[str, tuple[Path, str]] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)


def find_masks(
    base: Path, called: str, scans: Sequence[ScanFile], homes: tuple[Path, ...]
) -> Masks:
    """The one mask of each scan below `base`, by names alone; `homes` may be linked to.

    `called` is what the site file names the folder.
    """
    masks, look = Masks(), _Folders()
    chosen: dict[str, Path] = {}
    for scan in scans:
        candidates = _candidates(base, scan, look)
        problem = look.refused_below(base, scan) if not candidates else ""
        if len(candidates) == 1:
            chosen[scan.name] = candidates[0]
            continue
        if candidates:
            names = " and ".join(name_as_text(path.name) for path in candidates[:3])
            problem = f"has several brain masks ({names}); name another folder by data.masks"
        _leave_out(scan.name, problem or f"has no brain mask in {called}", masks)
    times = Counter(chosen.values())
    for name, path in chosen.items():
        if times[path] > 1:
            problem = f"shares the brain mask {name_as_text(path.name)} with another scan; it is "
            _leave_out(name, problem + "known to fit one at most", masks)
            continue
        stamp, problem = stamp_of(path, homes)
        if problem:
            _leave_out(name, f"its brain mask {name_as_text(path.name)} {problem}", masks)
            continue
        masks.found[name] = (path, stamp)
    problem = f"{len(masks.found)} of {len(scans)} scans have one in {called}"
    none = bool(scans) and not masks.found
    masks.findings.append(Finding(what="brain masks", problem=problem, error=none))
    return masks


def _leave_out(scan: str, problem: str, masks: Masks) -> None:
    masks.findings.append(Finding(what=scan, problem=problem, left_out=True))


def read_header(path: Path) -> nifti.Header:
    """The header of a scan or mask in any format that is read."""
    return mgh.read_header(path) if mgh.is_mgh(path) else nifti.read_header(path)


def read_mask(path: Path) -> tuple[Mask, NDArray[np.float64]]:
    """A mask (X, Y, Z) with axes near R, A, S, and its affine to world mm.

    Raises
    ------
    ScanError
        If it cannot be read, or holds nothing, everything, or what no mask holds.
    """
    try:
        header = read_header(path)
        voxels, affine = grid.to_ras(nifti.read_voxels(header), header.affine)
        if voxels.min() < 0:
            raise ScanError("it holds negative numbers (distances, perhaps); 0 and 1 are needed")
        # shares and probabilities count from a half on; a stripped image wherever it is not 0
        mask = voxels > (0.5 if voxels.max() <= 1 else 0)
        ml = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
        if ml < _LEAST_ML or mask.mean() > _MOST:
            raise ScanError(f"it holds {ml:.0f} ml, {mask.mean():.0%} of it all; a brain is needed")
    except ScanError as error:
        raise ScanError(f"its brain mask {name_as_text(path.name)}: {error}") from None
    return mask, affine


class _Folders:
    """Masks by what their names say they belong to, each folder listed once."""

    def __init__(self) -> None:
        self._seen: dict[Path, dict[object, list[Path]]] = {}
        self._refused: dict[Path, str] = {}

    def in_folder(self, folder: Path) -> Mapping[object, list[Path]]:
        """Masks in a folder by `_keys_of`."""
        if folder not in self._seen:
            found: dict[object, list[Path]] = {}
            self._seen[folder] = found
            try:
                names = sorted(entry.name for entry in folder.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                names = []
            except OSError as error:
                self._refused[folder], names = reason(error), []
            for name in names:
                for key in _keys_of(name):
                    found.setdefault(key, []).append(folder / name)
        return self._seen[folder]

    def refused_below(self, base: Path, scan: ScanFile) -> str:
        """Why a folder in which the mask may lie could not be listed."""
        for folder in _places(base, scan):
            if folder in self._refused:
                return f"its folder of brain masks cannot be listed: {self._refused[folder]}"
        return ""


def _keys_of(name: str) -> list[object]:
    """What scans a file may be the mask of: by the scan's own name, or by BIDS entities."""
    if name in _SUBJECTS:
        return [name]
    stem, ending = stem_of(name)
    if ending not in IMAGES or not stem.endswith("_mask"):
        return []
    own = _OF_SCAN.fullmatch(stem)
    keys: list[object] = [own[1]] if own else []
    found = entities(name_as_text(stem))
    if found.pop("desc", "") in _PROGRAMS:
        keys.append(frozenset(found.items()))
    return keys


def _candidates(base: Path, scan: ScanFile, look: _Folders) -> list[Path]:
    stem, _ = stem_of(scan.path.name)
    named = {key: value for key, value in scan.entities.items() if key != "desc"}
    found: dict[Path, None] = {}
    for folder in _places(base, scan):
        held = look.in_folder(folder)
        if folder.name == "mri":
            subject = next((held[name] for name in _SUBJECTS if name in held), [])
            found.update(dict.fromkeys(subject))
            continue
        for key in (stem, frozenset(named.items())):
            found.update(dict.fromkeys(held.get(key, [])))
    return [path for path in found if path != scan.path]


def _places(base: Path, scan: ScanFile) -> list[Path]:
    """Folders in which a scan's mask may lie."""
    who, when = scan.participant, scan.session
    own = base / who / when if when else base / who
    subjects = [own / "mri", *([base / f"{who}_{when}" / "mri"] if when else [])]
    return [base, *dict.fromkeys((base / who, own, own / "anat")), *subjects]
