"""Runs on the study's grid, cleaned as nilearn cleans, inside a mask that must be theirs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import smooth_img
from nilearn.signal import clean

from client.data.functional.cleaning import Placed, cleaned, made_brain, read_brain
from client.data.readers.nifti import Header, read_header, read_volumes
from common.errors import ScanError
from tests.client.data.functional.runs import (
    AFFINE,
    SHAPE,
    brain,
    lit,
    save,
    series,
    study,
)

TR_S = 2.0


def drifting(voxels: int = 7, volumes: int = 120) -> np.ndarray:
    random = np.random.default_rng(1)
    t = np.arange(volumes)[:, None]
    slow = np.sin(2 * np.pi * t * TR_S / 300)
    return (1000 + 0.3 * t + 5 * slow + random.normal(size=(volumes, voxels))).astype(np.float32)


@pytest.mark.parametrize("confounds", [0, 3])
@pytest.mark.parametrize("high_pass_s", [0.0, 128.0])
def test_time_courses_are_those_that_nilearn_cleans(confounds: int, high_pass_s: float) -> None:
    """Twenty times as fast, and the same numbers."""
    signals = drifting()
    columns = np.random.default_rng(2).normal(size=(len(signals), confounds)) + 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = clean(
            signals.astype(np.float64), detrend=True, standardize="zscore", t_r=TR_S,
            confounds=columns if confounds else None, filter="butterworth" if high_pass_s else False,
            high_pass=1 / high_pass_s if high_pass_s else None,
        )  # fmt: skip
    found = cleaned(signals, TR_S, high_pass_s, columns)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_every_voxel_has_mean_0_and_deviation_1_and_a_flat_one_is_0() -> None:
    """A voxel beside the brain must not become noise of deviation one."""
    signals = drifting()
    signals[:, 3] = 1234.5
    found = cleaned(signals, TR_S, 128.0, None)
    others = np.delete(found, 3, axis=1)
    np.testing.assert_allclose(others.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(others.std(0), 1, atol=1e-5)
    assert not found[:, 3].any()


def test_constant_and_doubled_confounds_take_out_what_one_does() -> None:
    """Tables hold columns of zeros, and the same column under two names."""
    signals, columns = drifting(), np.random.default_rng(2).normal(size=(120, 1))
    more = np.hstack([columns, 2 * columns, np.full((120, 1), 7.0)])
    np.testing.assert_allclose(
        cleaned(signals, TR_S, 128.0, more), cleaned(signals, TR_S, 128.0, columns), atol=1e-4
    )


def header_of(folder: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Header:
    save(folder / "run.nii.gz", voxels, affine)
    return read_header(folder / "run.nii.gz", series=True)


def test_volumes_are_smoothed_as_nilearn_smooths(tmp_path: Path) -> None:
    """Full width at half maximum in mm, along each axis by its own edge."""
    header = header_of(tmp_path, series(3))
    expected = smooth_img(nib.load(tmp_path / "run.nii.gz"), 12.0).get_fdata()[..., 0]
    placed = Placed(study(smoothing_mm=12.0), header, brain())
    found = placed.whole(placed.volume(next(read_volumes(header))))
    np.testing.assert_allclose(found[brain()], expected[brain()], rtol=1e-4)


def test_a_run_on_the_studys_grid_keeps_its_voxels(tmp_path: Path) -> None:
    """Nothing is interpolated where nothing need be."""
    voxels = series(2)
    header = header_of(tmp_path, voxels)
    placed = Placed(study(), header, brain())
    np.testing.assert_array_equal(placed.mask, brain())
    found = placed.whole(placed.volume(next(read_volumes(header))))
    np.testing.assert_array_equal(found[brain()], voxels[brain(), 0].astype(np.float32))
    assert placed.share == pytest.approx(1)


@pytest.mark.parametrize("turn", [lambda x: x[::-1], lambda x: np.swapaxes(x, 0, 2)])
def test_axes_are_turned_by_the_header(
    tmp_path: Path, turn: Callable[[np.ndarray], np.ndarray]
) -> None:
    """A run stored from left to right is not a mirrored brain."""
    voxels = series(2) + 300 * lit("left")[..., None]
    indices = np.arange(int(np.prod(SHAPE))).reshape(SHAPE)
    turned = np.ascontiguousarray(turn(voxels))
    order = turn(indices)
    # the affine that leads each stored voxel to where it was
    corner = np.array(np.unravel_index(order[0, 0, 0], SHAPE))
    steps = [
        np.array(np.unravel_index(order[tuple(int(a == axis) for a in range(3))], SHAPE)) - corner
        for axis in range(3)
    ]
    to_index = np.eye(4)
    to_index[:3, :3], to_index[:3, 3] = np.array(steps).T, corner
    header = header_of(tmp_path, turned, AFFINE @ to_index)
    placed = Placed(study(), header, np.ascontiguousarray(turn(brain())))
    found = placed.whole(placed.volume(next(read_volumes(header))))
    np.testing.assert_allclose(found[brain()], voxels[brain(), 0], rtol=1e-5)


def test_a_single_slice_is_a_volume_too(tmp_path: Path) -> None:
    """Some runs see one slice; its voxels are as thick as they are."""
    header = header_of(tmp_path, series(2)[:, :, 5:6])
    placed = Placed(study(shape=(12, 14, 1)), header, brain()[:, :, 5:6])
    assert placed.mask[:, :, 0].sum() == brain()[:, :, 5].sum()


def test_a_brain_outside_of_the_grid_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """As acquired, it may lie anywhere."""
    far = AFFINE.copy()
    far[2, 3] += 300
    header = header_of(tmp_path, series(2), far)
    with pytest.raises(ScanError, match=r'only 0 ml of its brain of \d+ ml .* align = "centre"'):
        Placed(study(align="world"), header, brain())
    assert Placed(study(align="centre"), header, brain()).share == pytest.approx(1)


@pytest.mark.parametrize(
    ("mask", "affine", "told"),
    [
        (np.ones((*SHAPE, 2)), AFFINE, "it has 2 volumes; one is needed"),
        (np.ones((6, 7, 5)), AFFINE, "it is of another grid: 6 x 7 x 5 voxels"),
        (np.pad(np.ones((10, 12, 8)), 1), AFFINE + np.eye(4)[3] * [[1], [0], [0], [0]], "of another grid"),
        (np.pad(0.4 * np.ones((10, 12, 8)), 1), AFFINE, "it holds no voxel above 0.5"),
    ],
)  # fmt: skip
def test_a_mask_that_cannot_be_the_runs_is_named(
    tmp_path: Path, mask: np.ndarray, affine: np.ndarray, told: str
) -> None:
    """Laid on all the same, it would cut somewhere else."""
    run = header_of(tmp_path, series(2))
    random = np.random.default_rng(0)
    save(tmp_path / "m_mask.nii.gz", mask * (1 - 0.01 * random.random(mask.shape)), affine)
    with pytest.raises(ScanError, match=f"its brain mask m_mask.nii.gz: .*{told}"):
        read_brain(str(tmp_path / "m_mask.nii.gz"), run)


def test_a_run_without_a_mask_gets_one_of_its_mean(tmp_path: Path) -> None:
    """Raw data sets have none."""
    header = header_of(tmp_path, series(4))
    found = made_brain(header)
    assert (found & brain()).sum() / (found | brain()).sum() > 0.7


def test_a_damaged_volume_is_named_by_its_number(tmp_path: Path) -> None:
    """A run with one broken volume cannot be filtered."""
    voxels = series(5)
    voxels[2, 2, 2, 3] = np.nan
    with pytest.raises(ScanError, match="volume 4 of 5: 1 of its 1,680 voxels are NaN"):
        list(read_volumes(header_of(tmp_path, voxels)))
    voxels[..., 3] = 0
    with pytest.raises(ScanError, match="volume 4 of 5: all its voxels are 0"):
        list(read_volumes(header_of(tmp_path, voxels)))
