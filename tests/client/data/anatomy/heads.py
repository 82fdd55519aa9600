"""Heads made of the MNI152 brain: moved by a known transform, with or without a skull around."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.data.anatomy import grid
from client.data.anatomy.template import template

Image = tuple[NDArray[np.float32], NDArray[np.float64]]
FIELD = grid.grid_affine((96, 112, 104), 2.0, (4.0, -10.0, 2.0))  # of view, oblique to nothing


def affine_of(
    degrees: tuple[float, float, float],
    shift: tuple[float, float, float],
    scales: tuple[float, ...],
) -> NDArray[np.float64]:
    """Turned about x, y, z, scaled and shifted about the middle of the brain: (4, 4)."""
    linear = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        one, two = [i for i in range(3) if i != axis]
        turn[[one, two], [one, two]] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        linear = turn @ linear
    moved = np.eye(4)
    moved[:3, :3] = linear @ np.diag(scales)
    middle = np.array(grid.MNI_CENTRE_MM)
    moved[:3, 3] = middle + shift - moved[:3, :3] @ middle
    return moved


MOTION = affine_of((-12.0, 6.0, 9.0), (7.0, -9.0, 12.0), (0.86, 0.9, 0.82))


@cache
def moved_brain(key: bytes = MOTION.tobytes()) -> Image:
    """The template's brain under a transform from its world to this image's, (X, Y, Z) at 2 mm."""
    transform = np.frombuffer(key).reshape(4, 4)
    mni = template(2.0)
    target = np.linalg.inv(transform) @ FIELD
    return grid.resampled(mni.voxels, mni.affine, target, (96, 112, 104)), FIELD


@cache
def moved_mask(key: bytes = MOTION.tobytes()) -> NDArray[np.bool_]:
    """What of the moved brain is brain."""
    mni, transform = template(2.0), np.frombuffer(key).reshape(4, 4)
    target = np.linalg.inv(transform) @ FIELD
    return grid.resampled(mni.brain.astype(np.float32), mni.affine, target, (96, 112, 104)) > 0.5


@cache
def whole_head(key: bytes = MOTION.tobytes()) -> Image:
    """The same with fluid and bone (dark, not black) and scalp around it, and a neck."""
    voxels, affine = moved_brain(key)
    away = ndimage.distance_transform_edt(voxels < 20) * 2.0
    head = np.where((away > 7) & (away < 14), 190.0, voxels)
    head = np.where((away > 0) & (away <= 7), 30.0, head)
    x, y = np.indices(head.shape[:2])
    neck = (x - 48) ** 2 + (y - 50) ** 2 < 22**2
    head[:, :, :14] = np.where(neck[..., None] & (away[:, :, :14] >= 14), 150.0, head[:, :, :14])
    noise = np.random.default_rng(0).normal(0, 2.0, head.shape)
    return np.abs(head + noise).astype(np.float32), affine


def apart_mm(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Most that two transforms differ inside the template's brain."""
    mni = template(8.0)
    index = np.argwhere(mni.brain)
    points = np.c_[index @ mni.affine[:3, :3].T + mni.affine[:3, 3], np.ones(len(index))]
    return float(np.linalg.norm((points @ (found - wanted).T)[:, :3], axis=1).max())
