"""A few figures on each prepared scan, by which a person finds the odd ones."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.data.anatomy import grid
from client.data.anatomy.template import template, tissue

_PURE: Final = 0.9  # share of white matter from which a voxel of the template counts as white
_GREY: Final = 0.7  # the cortex is thin: hardly a voxel of 4 mm is purely grey

Mask = NDArray[np.bool_]


def noise_of(voxels: NDArray[np.float32], inside: Mask) -> float:
    """Standard deviation of noise: what differs from the neighbours' mean, robustly.

    A voxel of pure noise differs from the mean of its six neighbours by sqrt(7 / 6) deviations.
    Anatomy adds to it, and interpolation takes away: compare scans of one grid, and no others.
    """
    kernel = ndimage.generate_binary_structure(3, 1).astype(np.float32) / -6
    kernel[1, 1, 1] = 1.0
    apart = ndimage.convolve(voxels, kernel, mode="nearest")[inside]
    return float(1.4826 * np.median(np.abs(apart)) / np.sqrt(7 / 6))


def contrast_to_noise(voxels: NDArray[np.float32], inside: Mask) -> float:
    """Spread of the middle half of intensities over noise; 0 where there is none."""
    low, high = np.percentile(voxels[inside], (25, 75))
    noise = noise_of(voxels, inside)
    return float((high - low) / noise) if noise > 0 else 0.0


def joint_variation(
    voxels: NDArray[np.float32], affine: NDArray[np.float64], found: NDArray[np.float64]
) -> float | None:
    """Coefficient of joint variation of grey and white matter, lower is better; None if undefined.

    (Ganzetti et al. 2016.) Grey and white as the template says, so as well as an affine transform
    can tell: compare scans of one study, and no others.
    """
    mni = template(4.0)
    placed = grid.resampled(voxels, affine, found @ mni.affine, mni.shape)
    grey = placed[(tissue("gm", 4.0) > _GREY) & mni.brain]
    white = placed[(tissue("wm", 4.0) > _PURE) & mni.brain]
    apart = abs(float(white.mean() - grey.mean()))
    return float((white.std() + grey.std()) / apart) if apart > 0 else None
