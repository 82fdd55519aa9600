"""A functional run onto the study's grid, and its voxels' time courses cleaned, by nilearn.

Tensor letters: T volumes, V voxels of the brain on the study's grid, X Y Z voxels along R, A, S.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from client.data.anatomy import grid
from client.data.readers.nifti import Header, read_header, read_volumes
from common.errors import ScanError
from common.kinds.bold import Bold
from common.printable import name_as_text
from common.runtime.garbage import old_objects_kept

_ALIKE_MM: Final = 0.1  # between two affines; programs round
_LEAST_SHARE: Final = 0.5  # of a brain that must lie in the study's grid
_OPENING_MM: Final = 6.0  # nilearn's two voxels, at the three millimetres that they are meant for
_WIDTH: Final = float(np.sqrt(8 * np.log(2)))  # full width at half maximum of one sigma
_AT_ONCE: Final = 8192  # voxels that are cleaned together: 26 MB at 400 volumes
_FLAT: Final = 1e-6  # deviation over mean below which a voxel tells nothing

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
Affine = NDArray[np.float64]


class Placed:
    """A run's mask on the study's grid, and the way there for each of its volumes."""

    def __init__(self, study: Bold.Study, header: Header, mask_XYZ: Mask) -> None:
        self._study, self._header = study, header
        self._turn = io_orientation(header.affine)  # type: ignore[no-untyped-call]
        mask, affine = grid.to_ras(mask_XYZ.astype(np.float32), header.affine)
        self._affine = affine
        reach = np.linalg.norm(affine[:3, :3], axis=0) * mask.shape
        if reach.min() < study.spacing_mm:
            raise ScanError(
                f"it is {reach.min():.3g} mm thick; one voxel of the study has {study.spacing_mm:g}"
            )
        centre = grid.MNI_CENTRE_MM
        if study.align == "centre":
            x, y, z = (affine @ [*np.argwhere(mask).mean(0), 1.0])[:3]
            centre = (float(x), float(y), float(z))
        self._target = grid.grid_affine(study.shape, study.spacing_mm, centre)
        # half of a run's time would go into reading every voxel where it lies
        self._there = mask.shape == study.shape and np.allclose(affine, self._target, atol=1e-4)
        self.mask = self._laid(mask, affine, "constant") > 0.5
        self.share = self._share(mask_XYZ, header.affine)

    def volume(self, voxels_XYZ: Floats) -> Floats:
        """One volume, smoothed and on the study's grid: (V,)."""
        if self._study.smoothing_mm:
            # as nilearn's smooth_img, which takes four times as long over its headers
            edges = np.linalg.norm(self._header.affine[:3, :3], axis=0)
            sigmas = self._study.smoothing_mm / _WIDTH / edges
            voxels_XYZ = ndimage.gaussian_filter(voxels_XYZ, sigmas)
        turned = apply_orientation(voxels_XYZ, self._turn)  # type: ignore[no-untyped-call]
        return self._laid(turned, self._affine, "edge")[self.mask]

    def whole(self, values_V: Floats) -> Floats:
        """(X, Y, Z) with 0 outside the brain."""
        found = np.zeros(self._study.shape, dtype=np.float32)
        found[self.mask] = values_V
        return found

    def _laid(self, voxels: Floats, affine: Affine, beyond: Any) -> Floats:
        if self._there:
            return voxels
        small, moved = grid.shrunk(voxels, affine, self._study.spacing_mm)
        moved = moved.copy()
        moved[:3, 3] -= moved[:3, :3].sum(1)  # a voxel reaches half its edge beyond its middle
        padded = np.pad(small, 1, mode=beyond)
        return grid.resampled(padded, moved, self._target, self._study.shape)

    def _share(self, mask: Mask, affine: Affine) -> float:
        """Share of the brain that lies in the study's grid.

        Raises
        ------
        ScanError
            If most of it does not.
        """
        own_ml = float(mask.sum() * abs(np.linalg.det(affine[:3, :3]))) / 1000
        placed_ml = float(self.mask.sum()) * self._study.spacing_mm**3 / 1000
        if placed_ml < _LEAST_SHARE * own_ml or not self.mask.any():
            remedy = 'align = "centre"' if self._study.align == "world" else "a larger grid"
            raise ScanError(
                f"only {placed_ml:.0f} ml of its brain of {own_ml:.0f} ml lie in the study's grid; "
                f"a study of such runs needs {remedy}"
            )
        return min(1.0, placed_ml / own_ml)


def read_brain(path: str, run: Header) -> Mask:
    """A brain mask (X, Y, Z) in the run's own order of voxels.

    Raises
    ------
    ScanError
        If it is a series, empty, or of another grid than the run.
    """
    name = name_as_text(Path(path).name)
    try:
        header = read_header(Path(path), series=True)
        if header.volumes > 1:
            raise ScanError(f"it has {header.volumes} volumes; one is needed")
        if header.shape != run.shape or _apart_mm(header, run) > _ALIKE_MM:
            raise ScanError(f"it is of another grid: {_told(header)}; the run's is {_told(run)}")
        (voxels,) = read_volumes(header)
    except ScanError as error:
        raise ScanError(f"its brain mask {name}: {error}") from None
    mask: Mask = voxels > 0.5
    if not mask.any():
        raise ScanError(f"its brain mask {name}: it holds no voxel above 0.5")
    return mask


def made_brain(header: Header) -> Mask:
    """A brain mask of the run's mean image, by nilearn.

    Raises
    ------
    ScanError
        If nothing stands out.
    """
    from nilearn.masking import compute_epi_mask

    total = np.zeros(header.shape, dtype=np.float64)
    for voxels in read_volumes(header):
        total += voxels
    mean = (total / header.volumes).astype(np.float32)
    image: Any = nib.Nifti1Image(mean, header.affine)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(), old_objects_kept():
        warnings.simplefilter("ignore")  # an empty mask is told below
        try:
            opening = round(_OPENING_MM / float(np.linalg.norm(header.affine[:3, 0])))
            mask: Mask = np.asarray(compute_epi_mask(image, opening=opening).dataobj) > 0
        except (ValueError, TypeError, IndexError):
            mask = np.zeros(header.shape, dtype=bool)
    if not mask.any():
        raise ScanError(
            "no brain stands out in its mean image; give it a mask (*_desc-brain_mask.nii.gz)"
        )
    return mask


def cleaned(
    series_TV: Floats,
    repetition_time_s: float,
    high_pass_s: float,
    confounds_TK: NDArray[np.float64] | None,
) -> Floats:
    """Each voxel without trend, slow drift and confounds, with mean 0 and deviation 1: (T, V).

    What `nilearn.signal.clean` gives, which filters voxel by voxel and takes twenty times as long.
    What is constant stays 0 throughout.
    """
    found = np.empty_like(series_TV)
    basis_TK = None
    if confounds_TK is not None and confounds_TK.shape[1]:
        passed = _filtered(confounds_TK, repetition_time_s, high_pass_s)
        basis_TK = _basis(confounds_TK, passed)
    for first in range(0, series_TV.shape[1], _AT_ONCE):
        part = series_TV[:, first : first + _AT_ONCE].astype(np.float64)
        flat = part.std(0) <= _FLAT * np.abs(part.mean(0))
        part = _filtered(part, repetition_time_s, high_pass_s)
        if basis_TK is not None:
            part -= basis_TK @ (basis_TK.T @ part)
        part -= part.mean(0)
        spread = part.std(0)
        part /= np.where(flat | (spread == 0), np.inf, spread)
        found[:, first : first + _AT_ONCE] = part
    return found


def _filtered(
    signals_TV: NDArray[np.float64], repetition_time_s: float, high_pass_s: float
) -> NDArray[np.float64]:
    """Without linear trend, and without what is slower than one in `high_pass_s` seconds."""
    from nilearn.signal import butterworth
    from scipy.signal import detrend

    plain = detrend(signals_TV, axis=0)
    if not high_pass_s:
        return np.asarray(plain)
    passed = butterworth(plain, 1 / repetition_time_s, high_pass=1 / high_pass_s, copy=True)
    return np.asarray(passed)


def _basis(
    confounds_TK: NDArray[np.float64], passed_TK: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Orthonormal columns that span filtered confounds; one that filters take whole spans none."""
    size, spread = np.abs(confounds_TK).max(0), passed_TK.std(0)
    told = spread > _FLAT * size
    scaled = (passed_TK - passed_TK.mean(0))[:, told] / spread[told]
    left, sizes, _ = np.linalg.svd(scaled, full_matrices=False)
    return np.asarray(left[:, sizes > _FLAT * sizes.max(initial=0)])


def _apart_mm(one: Header, other: Header) -> float:
    """How far the same voxel of two headers lies apart at most, on axes and corner."""
    ends = np.diag(np.asarray(one.shape) - 1.0)
    corners = np.vstack([np.zeros(3), ends, np.asarray(one.shape) - 1.0])
    between = one.affine - other.affine
    return float(np.abs(corners @ between[:3, :3].T + between[:3, 3]).max())


def _told(header: Header) -> str:
    edges = np.linalg.norm(header.affine[:3, :3], axis=0)
    shape = " x ".join(str(n) for n in header.shape)
    return (
        f"{shape} voxels of {' x '.join(f'{edge:.3g}' for edge in edges)} mm from "
        f"{', '.join(f'{place:.4g}' for place in header.affine[:3, 3])}"
    )
