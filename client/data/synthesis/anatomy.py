"""Synthetic heads: MNI tissue maps, and the warp and brightness that render one of them.

What varies between heads are regional volumes, by a warp, and the brightness of grey matter, which
no regional volume sees (`modes`).

Letters in shapes: R regions, M voxels near the brain, X Y Z the grid (RAS). Sums over
regions and voxels are einsum, not @: BLAS rounds differently with another number of threads, and
a seed promises the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from nilearn import datasets
from scipy import ndimage

from client.data.synthesis.modes import Modes, draw_modes
from client.data.synthesis.regions import Floats, Regions, find_regions, kernels_of, world_of
from common.errors import SettingError
from common.kinds.synthetic_t1w import FIELD_OF_VIEW_MM, check_grid

Volume = npt.NDArray[np.float32]

_BRAIN_CENTRE_MM: Final = (0.0, -17.0, 5.0)  # middle of the bounding box of the MNI brain mask
_MARGIN_MM: Final = 9.0  # the largest heads reach about this far beyond the template


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """A template head on one grid, with all that rendering needs precomputed.

    Attributes
    ----------
    affine
        (4, 4) voxel to MNI millimetres, RAS, isotropic.
    tissues
        (3, X, Y, Z) float32 shares of grey matter, white matter and cerebrospinal fluid.
    brain
        (X, Y, Z) bool, the template's brain mask.
    near
        (X, Y, Z) bool, the M voxels that any head may reach; all others stay 0.
    voxels
        (3, M) float32 grid coordinates of those voxels.
    warp
        (R, 3 M) float32, displacement in voxels for a log-scale of 1, flattened (axis, voxel).
    spread
        (3, M) float32, displacement in voxels for a change of head size of 1.
    brightness
        (R, M) float32, what one region's brightness adds to its surroundings' grey matter.
    polynomial
        (6, M) float32 smooth fields that make up a receive bias.
    """

    spacing_mm: float
    affine: Floats
    tissues: Volume
    brain: npt.NDArray[np.bool_]
    near: npt.NDArray[np.bool_]
    voxels: Volume
    warp: Volume
    spread: Volume
    brightness: Volume
    polynomial: Volume
    regions: Regions
    modes: Modes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y and z."""
        x, y, z = self.brain.shape
        return x, y, z


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What one person's scans have in common."""

    log_scales: Floats  # (R,)
    size: float  # relative deviation of the head's diameter
    age_z: float  # (age - 50) / 18
    thinning: float  # share of grey matter that is lost to fluid
    brightness: Floats  # (R,) of grey matter


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanner:
    """What one site's scans have in common."""

    gamma: float
    grey_shift: float
    white_shift: float
    bias: Floats  # (6,) coefficients of the log receive bias
    blur_voxels: float
    noise: float  # sd of each channel of the Rician noise; white matter is about 0.9
    zoom: float  # relative error of the scanner's millimetre


def build_anatomy(spacing_mm: float, shape: tuple[int, int, int] | None = None) -> Anatomy:
    """Resample the bundled MNI maps to a grid centred on the brain, and precompute the kernels.

    Parameters
    ----------
    spacing_mm
        Edge of a voxel, 2 to 16 mm.
    shape
        Voxels along x, y, z; by default the fewest that hold the brain, in multiples of 4.

    Raises
    ------
    SettingError
        Where the grid is too fine, too coarse or too small for the brain.
    """
    if not 2.0 <= spacing_mm <= 16.0:
        raise SettingError(f"spacing_mm is {spacing_mm}; it must be from 2 to 16")
    x, y, z = (int(-(-extent // (4 * spacing_mm)) * 4) for extent in FIELD_OF_VIEW_MM)
    shape = shape or (x, y, z)
    try:
        check_grid(shape, spacing_mm)
    except ValueError as error:
        raise SettingError(str(error)) from None
    affine = _grid(spacing_mm, shape)
    fine, fine_affine = fine_tissues()
    tissues = averaged(fine, fine_affine, affine, shape)
    regions = find_regions(fine, fine_affine)
    brain = tissues.sum(0) >= 0.5
    near = ndimage.binary_dilation(brain, iterations=max(1, round(_MARGIN_MM / spacing_mm)))
    voxels = np.argwhere(near)  # (M, 3)
    world = world_of(affine, voxels)
    warp = _warp(regions, world) / spacing_mm  # (R, 3, M)
    brightness = _brightness(regions, world, tissues[0][near])
    return Anatomy(
        spacing_mm=spacing_mm,
        affine=affine,
        tissues=tissues,
        brain=brain,
        near=near,
        voxels=np.ascontiguousarray(voxels.T, dtype=np.float32),
        warp=warp.reshape(len(warp), -1).astype(np.float32),
        spread=((world - _BRAIN_CENTRE_MM).T / spacing_mm).astype(np.float32),
        brightness=brightness.astype(np.float32),
        polynomial=_polynomial(world),
        regions=regions,
        modes=draw_modes(_sensitivity(tissues, near, warp), brightness * tissues[0][near]),
    )


def render(anatomy: Anatomy, head: Head, scanner: Scanner, random: np.random.Generator) -> Volume:
    """Image one head with one scanner: (X, Y, Z) float32, arbitrary units, 0 outside the brain.

    Position (a shift of sd 1 mm) and noise come from `random`; all else is fixed by the arguments.
    """
    grey, white, fluid = _tissues_of(anatomy, head, scanner, random)
    brain = grey + white + fluid >= 0.5
    bright = np.einsum("r,rm->m", head.brightness.astype(np.float32), anatomy.brightness)
    image = grey * (0.58 + scanner.grey_shift - 0.012 * head.age_z + bright)
    image += white * (0.90 + scanner.white_shift - 0.02 * head.age_z)
    image += 0.18 * fluid
    np.maximum(image, 0.0, out=image)
    image **= np.float32(scanner.gamma)
    image *= np.exp(np.einsum("k,km->m", scanner.bias.astype(np.float32), anatomy.polynomial))
    if scanner.blur_voxels > 0.05:  # below, the discrete kernel is the identity
        image = ndimage.gaussian_filter(_volume(anatomy, image), scanner.blur_voxels)[anatomy.near]
    channels = np.float32(scanner.noise) * random.standard_normal((2, image.size), np.float32)
    image = np.hypot(image + channels[0], channels[1])
    return _volume(anatomy, np.where(brain, image, np.float32(0)))


def standardise(volume: Volume) -> Volume:
    """Zero mean and unit sd over the brain (the voxels above 0); 0 outside it."""
    brain = volume > 0
    inside = volume[brain]
    result = np.zeros_like(volume)
    result[brain] = (inside - inside.mean()) / inside.std()
    return result


def origins(anatomy: Anatomy, head: Head, scanner: Scanner) -> Volume:
    """Where in the template each voxel near this head comes from: (3, M) grid coordinates."""
    moved = np.einsum("r,rm->m", head.log_scales.astype(np.float32), anatomy.warp)
    moved = moved.reshape(anatomy.voxels.shape)
    moved += np.float32(head.size + scanner.zoom) * anatomy.spread
    return np.asarray(anatomy.voxels - moved)


def _tissues_of(
    anatomy: Anatomy, head: Head, scanner: Scanner, random: np.random.Generator
) -> tuple[Volume, Volume, Volume]:
    """Sample the template where each voxel near this head comes from: three (M,) shares."""
    shift = random.normal(0.0, 1.0 / anatomy.spacing_mm, (3, 1)).astype(np.float32)
    source = origins(anatomy, head, scanner) + shift
    grey, white, fluid = (
        ndimage.map_coordinates(tissue, source, order=1, prefilter=False)
        for tissue in anatomy.tissues
    )
    lost = np.float32(head.thinning) * grey
    return grey - lost, white, fluid + lost


def _volume(anatomy: Anatomy, values: Volume) -> Volume:
    volume = np.zeros(anatomy.shape, np.float32)
    volume[anatomy.near] = values
    return volume


def _grid(spacing_mm: float, shape: tuple[int, int, int]) -> Floats:
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = _BRAIN_CENTRE_MM - spacing_mm * (np.array(shape) - 1) / 2
    return affine


def fine_tissues() -> tuple[Volume, Floats]:
    """Grey matter, white matter and fluid of the bundled template at 1 mm."""
    image = datasets.load_mni152_gm_template(resolution=1)
    mask = np.asarray(datasets.load_mni152_brain_mask(resolution=1).dataobj) > 0
    grey = np.asarray(image.dataobj, dtype=np.float32) * mask
    white = np.asarray(datasets.load_mni152_wm_template(resolution=1).dataobj, np.float32) * mask
    white = np.minimum(white, 1 - grey)
    return np.stack([grey, white, mask - grey - white]), np.asarray(image.affine, np.float64)


def averaged(
    fine: Volume, fine_affine: Floats, affine: Floats, shape: tuple[int, int, int]
) -> Volume:
    """Average (C, x, y, z) over each voxel of the new grid, as a scanner does; both are RAS."""
    for axis in range(3):
        step, spacing = fine_affine[axis, axis], affine[axis, axis]
        old = fine_affine[axis, 3] + step * np.arange(fine.shape[axis + 1])
        new = affine[axis, 3] + spacing * np.arange(shape[axis])
        apart = np.abs(new[:, None] - old)
        overlap = np.clip((spacing + step) / 2 - apart, 0, step) / spacing
        moved = np.moveaxis(fine, axis + 1, 1)
        fine = np.moveaxis(
            np.einsum("no,co...->cn...", overlap.astype(np.float32), moved), 1, axis + 1
        )
    return np.ascontiguousarray(fine)


def _warp(regions: Regions, world: Floats) -> Floats:
    """Displacement (R, 3, M) in mm for a log-scale of 1: away from each region's centre."""
    away = world - regions.centres_mm[:, None]  # (R, M, 3)
    kernels = kernels_of(world, regions.centres_mm, regions.widths_mm)
    return np.moveaxis(away * kernels[..., None], -1, 1)


def _brightness(regions: Regions, world: Floats, grey: Volume) -> Floats:
    """Kernels (R, M), of one factor such that random brightness of sd 1 has sd 1 in grey matter."""
    kernels = kernels_of(world, regions.centres_mm, regions.widths_mm)
    square = np.einsum("rm,m->", kernels**2, grey) / grey.sum(dtype=np.float64)
    return np.asarray(kernels / np.sqrt(square))


def _polynomial(world: Floats) -> Volume:
    """Six fields of order 1 and 2 over the head, about -1 to 1 at its surface."""
    unit = ((world - _BRAIN_CENTRE_MM) / 80.0).T
    return np.concatenate([unit, unit**2 - 0.33]).astype(np.float32)


def _sensitivity(tissues: Volume, near: npt.NDArray[np.bool_], warp: Floats) -> Floats:
    """First-order change (R, M) of a noiseless image for a log-scale of 1 of each region."""
    image = np.einsum("c,cxyz->xyz", np.array([0.58, 0.90, 0.18]), tissues)
    gradient = np.stack([slope[near] for slope in np.gradient(image)])  # (3, M) per voxel
    return np.asarray((warp * gradient).sum(1))
