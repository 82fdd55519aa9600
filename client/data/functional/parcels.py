"""Functional runs as time series by region of the study's atlas, by nilearn's labels masker.

Letters in shapes: T volumes, R regions, X Y Z voxels.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.data.finding import Finding
from client.data.functional.cleaning import read_brain
from client.data.functional.confounds import Confounds, taken_confounds
from client.data.functional.repetition_time import agreed_repetition_time
from client.data.functional.side_files import Folders
from client.data.readers import bids
from client.data.readers.nifti import Header, read_header, read_volumes
from common.errors import DataError, ScanError
from common.kinds.connectome import Connectome
from common.printable import name_as_text
from common.runtime.garbage import old_objects_kept

_VERSIONS: Final = (*bids.VERSIONS, "echo", "part")
_MOST_NUMBERS: Final = 2**31  # 8 GB of one run
_LARGEST_ATLAS: Final = 1 << 28  # bytes
_FLAT: Final = 1e-6  # deviation over the largest value, below which a signal only rounds

Series = NDArray[np.float64]


class Run(NamedTuple):
    """What reading a run needs, as text: it travels to worker processes."""

    path: str
    confounds: str
    mask: str
    said_s: float | None
    home: str
    atlas: str
    notes: tuple[str, ...]


class Parcelled(NamedTuple):
    """A run's series (T, R), 0 throughout where a region has no voxel in it, and what was odd."""

    series: Series
    notes: tuple[str, ...]
    quality: dict[str, float]


def find_runs(study: Connectome.Study, site: Connectome.Site, root: Path) -> bids.Scans:
    """Every functional run in MNI152's space.

    Raises
    ------
    DataError
        If the folder or the atlas is absent, or the atlas is not the study's.
    """
    home = root / site.root
    check_atlas(study, root / site.atlas)
    links = tuple(root / place for place in site.links)
    runs = bids.find_scans(home, site.derivative, "bold", site.entities, links, "func")
    bids.one_version(runs, _in_mni, _VERSIONS)
    for scan in runs.files:
        if not _in_mni(scan.entities.get("space", "")):
            problem = "is in no space-MNI… by its name; the atlas would read other places in it"
            runs.findings.append(Finding(what=scan.name, problem=problem, left_out=True))
    runs.files = [scan for scan in runs.files if _in_mni(scan.entities.get("space", ""))]
    return runs


def _in_mni(space: str) -> bool:
    return space.startswith("MNI")


def run_of(
    scan: bids.ScanFile, site: Connectome.Site, root: Path, folders: Folders
) -> tuple[Run, str] | Finding:
    """A run with what lies beside it, and a stamp of them all; or why it is none."""
    beside = folders.beside(scan, with_events=False)
    if beside.problem:
        return Finding(what=scan.name, problem=beside.problem, left_out=True)
    run = Run(
        path=os.fspath(scan.path),
        confounds=beside.confounds,
        mask=beside.mask,
        said_s=beside.said_s,
        home=os.fspath(root / site.root),
        atlas=os.fspath(root / site.atlas),
        notes=tuple(beside.notes),
    )
    return run, beside.stamp


def folders_of(site: Connectome.Site, root: Path, runs: bids.Scans) -> Folders:
    """Where side files of the site's runs are looked for."""
    return Folders(root / site.root, runs.homes, None)


def check_atlas(study: Connectome.Study, path: Path) -> None:
    """Refuse, by a `DataError`, an atlas that is not the one that the study names."""
    if not study.atlas:
        raise DataError(
            "data.atlas is set, but the study names no atlas (data.atlas, its SHA-256); a study of "
            "series needs data.files"
        )
    try:
        if path.stat().st_size > _LARGEST_ATLAS:
            raise DataError(f"data.atlas: {path} is larger than {_LARGEST_ATLAS >> 20} MiB")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise DataError(f"data.atlas names {path}, which cannot be read") from None
    if found != study.atlas:
        raise DataError(
            f"data.atlas: {path} is another file than the study's: its SHA-256 begins "
            f"{found[:12]}, the study's {study.atlas[:12]}"
        )


def parcelled(study: Connectome.Study, run: Run) -> Parcelled:
    """Means of a run's regions, without trend, what is too slow or too fast, and confounds.

    Raises
    ------
    ScanError
        With what was found and what was needed.
    """
    header, repetition_time_s, notes = _header(study, run)
    confounds = taken_confounds(
        run.confounds, run.home, study.confounds, header.volumes, study.most_motion_mm
    )
    labels = _labels(run.atlas, study)
    mask = read_brain(run.mask, header) if run.mask else None
    series = _means(study, header, labels, mask, repetition_time_s, confounds)
    quality = {}
    if confounds is not None and confounds.displacement_mm is not None:
        quality["displacement_mm"] = float(confounds.displacement_mm.mean())
    return Parcelled(series, (*notes, *(confounds.notes if confounds is not None else ())), quality)


def _header(study: Connectome.Study, run: Run) -> tuple[Header, float, tuple[str, ...]]:
    header = read_header(Path(run.path), series=True)
    if header.volumes < study.least_points:
        raise ScanError(
            f"has {header.volumes} volumes; the study's data.least_points is {study.least_points}"
        )
    held = header.volumes * math.prod(header.shape)
    if held > _MOST_NUMBERS:
        raise ScanError(f"has {held:,} voxels in all volumes; at most {_MOST_NUMBERS:,} are held")
    repetition_time_s, notes = agreed_repetition_time(header.repetition_time_s, run.said_s)
    for key, passed_s in (("high_pass_s", study.high_pass_s), ("low_pass_s", study.low_pass_s)):
        if passed_s and passed_s <= 2 * repetition_time_s:
            raise ScanError(
                f"its volumes are {repetition_time_s:g} s apart; {key} of {passed_s:g} needs more"
            )
    return header, repetition_time_s, (*header.notes, *run.notes, *notes)


@lru_cache(maxsize=1)
def _labels(atlas: str, study: Connectome.Study) -> Any:
    """The atlas, of whole numbers 1 to R, as an image.

    Raises
    ------
    ScanError
        If its numbers are not as many as the study has regions.
    """
    name = name_as_text(Path(atlas).name)
    try:
        header = read_header(Path(atlas), series=True)
        if header.volumes != 1:
            raise ScanError(f"has {header.volumes} volumes; one, of numbered regions, is needed")
        (voxels,) = read_volumes(header)
    except ScanError as error:
        raise ScanError(f"the atlas {name} {error}") from None
    numbers = np.unique(voxels[voxels != 0])
    if len(numbers) != study.regions or not (numbers == np.round(numbers)).all():
        raise ScanError(
            f"the atlas {name} numbers {len(numbers)} regions; the study has {study.regions}"
        )
    places = np.searchsorted(numbers, voxels) + 1  # in the order of their numbers
    return _image(np.where(voxels != 0, places, 0).astype(np.int32), header.affine)


def _means(
    study: Connectome.Study,
    header: Header,
    labels: Any,
    mask: NDArray[np.bool_] | None,
    repetition_time_s: float,
    confounds: Confounds | None,
) -> Series:
    """(T, R) by nilearn, in the order of the atlas's numbers."""
    from nilearn.maskers import NiftiLabelsMasker
    from nilearn.signal import clean

    series_XYZT = np.empty((*header.shape, header.volumes), dtype=np.float32)
    for number, voxels in enumerate(read_volumes(header)):
        series_XYZT[..., number] = voxels
    brain = None if mask is None else _image(mask.astype(np.uint8), header.affine)
    with warnings.catch_warnings(), old_objects_kept():
        warnings.simplefilter("ignore")  # on regions that vanish: they are told as silent ones
        masker = NiftiLabelsMasker(
            labels_img=labels,
            mask_img=brain,
            resampling_target="data",
            standardize=None,
            reports=False,
        )
        try:
            means = masker.fit_transform(_image(series_XYZT, header.affine)).astype(np.float64)
        except ValueError as error:
            raise ScanError(f"no region of the atlas can be read from it: {error}") from None
        found = clean(
            means,
            detrend=True,
            standardize="zscore_sample",
            confounds=None
            if confounds is None or not confounds.columns.size
            else confounds.columns,
            high_pass=1 / study.high_pass_s if study.high_pass_s else None,
            low_pass=1 / study.low_pass_s if study.low_pass_s else None,
            t_r=repetition_time_s,
        )
    found[:, means.std(0) <= _FLAT * np.abs(means).max(0)] = 0.0  # what filters leave is rounding
    series = np.zeros((header.volumes, study.regions))
    numbers = [int(label) for place, label in masker.region_ids_.items() if place != "background"]
    series[:, np.array(numbers) - 1] = found
    return series


def _image(voxels: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    return nib.Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]
