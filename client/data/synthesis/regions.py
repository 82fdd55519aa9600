"""Regions of the synthetic head: eighteen parts of the left cortex and three deep ones, mirrored.

Letters in shapes: R regions, P pairs of them, M points in the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2

Floats = npt.NDArray[np.float64]

_CORTICAL_PAIRS: Final = 18
_CORTICAL_WIDTH_MM: Final = 17.0

# Centres of the left member of each special pair (mm, MNI, as +-x) and its kernel width (mm).
_SPECIAL: Final[dict[str, tuple[tuple[float, float, float], float]]] = {
    "hippocampus": ((-26.0, -20.0, -15.0), 11.0),
    "frontal_ventricle": ((-10.0, -5.0, 22.0), 13.0),
    "posterior_ventricle": ((-14.0, -38.0, 16.0), 12.0),
}
PAIRS: Final = (*(f"cortex_{n + 1:02d}" for n in range(_CORTICAL_PAIRS)), *_SPECIAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Regions:
    """Centres and Gaussian widths of R regions: first all left members, then their mirror images.

    The names of pairs, without a side, are `PAIRS`.
    """

    names: tuple[str, ...]
    centres_mm: Floats  # (R, 3), MNI world
    widths_mm: Floats  # (R,)
    volumes_mm3: Floats  # (R,), template tissue under the kernel: fluid in ventricles, else grey


def find_regions(fine: npt.NDArray[np.float32], affine: Floats) -> Regions:
    """Cluster the left cortex into 18 parts, mirror them, and add the special centres.

    fine: (3, X, Y, Z) shares of grey matter, white matter and fluid at 1 mm, RAS.
    """
    every = 6  # mm, of the 1 mm maps: the grid that will be rendered plays no part
    grey, fluid = (fine[tissue, ::every, ::every, ::every] for tissue in (0, 2))
    world = world_of(affine, every * np.argwhere(grey + fluid > 0))
    cortex = world[grey[grey + fluid > 0] > 0.5]
    left = kmeans2(cortex[cortex[:, 0] < -2], _CORTICAL_PAIRS, minit="++", iter=50, seed=0)[0]
    left = left[np.lexsort(left.round().T)]  # from below to above
    pairs = np.concatenate([left, [centre for centre, _ in _SPECIAL.values()]])
    widths = [_CORTICAL_WIDTH_MM] * _CORTICAL_PAIRS + [mm for _, mm in _SPECIAL.values()]
    centres_mm, widths_mm = np.concatenate([pairs, pairs * (-1, 1, 1)]), np.array(widths * 2)
    kernels = kernels_of(world, centres_mm, widths_mm)
    in_grey, in_fluid = (
        np.einsum("rm,m->r", kernels, tissue[grey + fluid > 0]) for tissue in (grey, fluid)
    )
    return Regions(
        names=tuple(f"{side}_{name}" for side in ("left", "right") for name in PAIRS),
        centres_mm=centres_mm,
        widths_mm=widths_mm,
        volumes_mm3=every**3 * np.where(special("ventricle") > 0, in_fluid, in_grey),
    )


def kernels_of(world: Floats, centres_mm: Floats, widths_mm: Floats) -> Floats:
    """Gaussians of shape (R, M) around (R, 3) centres at (M, 3) points."""
    squared = ((world - centres_mm[:, None]) ** 2).sum(-1)
    return np.asarray(np.exp(-squared / (2 * widths_mm[:, None] ** 2)))


def world_of(affine: Floats, voxels: npt.NDArray[np.int64]) -> Floats:
    """Millimetres (M, 3) of coordinates (M, 3) on a RAS grid."""
    return np.asarray(voxels * np.diag(affine)[:3] + affine[:3, 3])


def special(name: str) -> Floats:
    """1 for each region whose pair is called like that, else 0: (R,)."""
    return np.array([float(name in pair) for pair in PAIRS] * 2)


def both_sides(values: Floats) -> Floats:
    """Means over each pair, (..., P), of what each region has, (..., R)."""
    return np.asarray((values[..., : len(PAIRS)] + values[..., len(PAIRS) :]) / 2)
