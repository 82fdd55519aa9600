"""Heads are told from backgrounds that are dark, noise or bright; where there is none, it is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from client.data.anatomy import grid
from client.data.anatomy.background import head_of
from common.errors import ScanError

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SIDE = 96
SPACING_MM = 4.0


def phantom(background: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A head of 2 mm voxels, 135 to 165 mm wide: scalp, skull, two tissues; and where it is."""
    chance = np.random.default_rng(0)
    x = (np.indices((SIDE,) * 3) - SIDE / 2) / np.array([34, 41, 36])[:, None, None, None]
    radius = np.sqrt((x**2).sum(0))
    folds = np.sin(18 * x[0]) * np.sin(16 * x[1]) * np.sin(17 * x[2])
    voxels = np.where(radius < 0.8, np.where(radius + 0.15 * folds < 0.6, 3200.0, 2200.0), 300.0)
    voxels[(radius > 0.88) & (radius < 1)] = 3600.0
    voxels = ndimage.gaussian_filter(voxels, 0.6) + chance.normal(0, 60, voxels.shape)
    outside = radius >= 1
    fills: dict[str, Any] = {
        "zero": 0.0,
        "dark": np.abs(chance.normal(0, 80, voxels.shape)),
        "noise": chance.uniform(0, 4095, voxels.shape),
        "bright": 4095.0,
    }
    return np.where(outside, fills[background], voxels).astype(np.float32), ~outside


def found(voxels: NDArray[np.float32]) -> tuple[NDArray[np.bool_], str]:
    small, _ = grid.shrunk(voxels, AFFINE, SPACING_MM)
    return head_of(voxels, small, AFFINE, SPACING_MM)


def overlap(mask: NDArray[np.bool_], head: NDArray[np.bool_]) -> float:
    """Dice's coefficient with the head itself, shrunk alike."""
    small = grid.shrunk(head.astype(np.float32), AFFINE, SPACING_MM)[0] > 0.5
    return float(2 * (mask & small).sum() / (mask.sum() + small.sum()))


@pytest.mark.parametrize(
    ("background", "note"), [("zero", ""), ("dark", ""), ("noise", "noise"), ("bright", "brighter")]
)
def test_the_head_is_found_before_any_background(background: str, note: str) -> None:
    """MP2RAGE has noise up to the brightest tissue where there is no signal at all."""
    voxels, head = phantom(background)
    mask, told = found(voxels)
    assert overlap(mask, head) > 0.95
    assert (note in told) if note else not told
    assert not mask[[0, 0, -1, -1], [0, -1, 0, -1], [0, -1, -1, 0]].any()  # corners


def test_a_dark_background_gives_what_it_always_gave() -> None:
    """The closer look costs time, and other masks would be other data."""
    voxels, _ = phantom("dark")
    small, _ = grid.shrunk(voxels, AFFINE, SPACING_MM)
    np.testing.assert_array_equal(found(voxels)[0], grid.foreground(small))


def test_a_tight_box_around_the_head_is_head_and_background() -> None:
    """Cropped to the last voxel, a head still leaves the corners: half a box is an ellipsoid."""
    voxels, head = phantom("dark")
    box = ndimage.find_objects(head.astype(int))[0]
    mask, told = found(voxels[box])
    assert not told
    assert 0.45 < mask.mean() < 0.75


def test_an_inverted_head_is_told() -> None:
    """Negatives are bright outside; somebody should look at what made them."""
    voxels, head = phantom("zero")
    mask, told = found(voxels.max() - voxels)
    assert "brighter" in told
    assert overlap(mask, head) > 0.9


def test_noise_that_is_only_part_of_the_foreground_is_told() -> None:
    """A noisy scan is still a scan: what a person should look at is named, and kept."""
    voxels, head = phantom("zero")
    noise = np.random.default_rng(0).uniform(0, 1500, voxels.shape).astype(np.float32)
    mask, told = found(np.where(head, voxels, noise))
    assert told.startswith("noise seems to be part of its foreground (")
    assert overlap(mask, head) < 0.9


@pytest.mark.parametrize("kind", ["noise", "tissue"])
def test_what_is_head_everywhere_is_refused_with_its_share(kind: str) -> None:
    """Nothing but noise, or a crop within the brain: no mask can be right."""
    chance = np.random.default_rng(0)
    voxels = chance.uniform(0, 4095, (SIDE,) * 3).astype(np.float32)
    if kind == "tissue":
        voxels = 1000 + 50 * ndimage.gaussian_filter(voxels, 3)
    with pytest.raises(
        ScanError, match=r"fills \d+% of the field of view, no background was found"
    ):
        found(voxels)
