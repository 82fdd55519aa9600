"""Overlap with a known activation is told beside what a map of its kind has by chance."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from common.errors import DataError
from common.study import parse_study
from deploy.maps import GroupMap, nifti_of
from deploy.overlap import TRUTH, overlaps

SHAPE = (20, 24, 20)
STUDY = parse_study(
    {
        "name": "trial",
        "data": {"kind": "t1w", "shape": list(SHAPE), "spacing_mm": 8.0, "align": "world"},
        "targets": {"age": {"kind": "regression", "unit": "years"}},
        "backbone": {"name": "sfcn", "channels": [4], "top": 4},
        "objective": {"name": "multitask"},
        "sites": {"train": ["amber"]},
    },
    Path("study.toml"),
)


def smooth(seed: int) -> NDArray[np.float32]:
    """A smooth map of noise inside a box in the middle, as maps without a finding are."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    inside = np.zeros(SHAPE, dtype=bool)
    inside[3:17, 3:21, 3:17] = True
    return np.where(inside, gaussian_filter(noise, 1.5), 0.0).astype(np.float32)


def map_of(volume: NDArray[np.float32], group: str = "faces") -> GroupMap:
    return GroupMap(
        task="states",
        way="pretrained-full",
        group=group,
        number=1,
        sites=("amber",),
        volume=volume,
    )


def truth_in(folder: Path, volume: NDArray[np.float32], **more: object) -> Path:
    image = nifti_of(STUDY, map_of(volume))
    nibabel.save(nibabel.Nifti1Image(volume, more.get("affine", image.affine)),
                 folder / TRUTH.format("faces"))  # fmt: skip
    return folder


def test_a_map_of_the_truth_is_far_above_chance(tmp_path: Path) -> None:
    """Noisy, and signed: where a state is less active is active, too."""
    truth = np.zeros(SHAPE, np.float32)
    truth[6:9, 6:9, 6:9], truth[12:15, 14:17, 10:12] = 1.0, -1.0
    found = map_of(np.abs(truth) + 0.5 * smooth(1))
    (one,) = overlaps(iter([found]), STUDY, truth_in(tmp_path, truth))
    assert one.dice > 0.4
    assert one.dice > 3 * one.chance_dice
    assert one.precision > 0.9
    assert one.p == pytest.approx(1 / 1000)


def test_smooth_noise_is_no_finding(tmp_path: Path) -> None:
    """Of 200 such maps 5 were below 0.05, and half below 0.57: shuffled voxels would give many."""
    truth = np.abs(smooth(0)) ** 3
    folder = truth_in(tmp_path, truth.astype(np.float32))
    found = overlaps((map_of(smooth(seed)) for seed in range(1, 11)), STUDY, folder)
    assert sum(one.p < 0.05 for one in found) <= 2
    assert np.median([one.p for one in found]) > 0.1


def test_the_same_maps_have_the_same_chance(tmp_path: Path) -> None:
    """Whoever repeats it finds the same figures."""
    folder = truth_in(tmp_path, np.abs(smooth(0)))
    assert overlaps(iter([map_of(smooth(1))]), STUDY, folder) == overlaps(
        iter([map_of(smooth(1))]), STUDY, folder
    )


def test_a_truth_that_is_not_there_or_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    """A shifted truth would make any map look wrong."""
    with pytest.raises(DataError, match="faces is not known"):
        overlaps(iter([map_of(smooth(1))]), STUDY, tmp_path)
    truth_in(tmp_path, np.abs(smooth(0)), affine=np.diag([8.0, 8.0, 8.0, 1.0]))
    with pytest.raises(DataError, match="another grid"):
        overlaps(iter([map_of(smooth(1))]), STUDY, tmp_path)


def test_a_map_of_nothing_overlaps_with_nothing(tmp_path: Path) -> None:
    """A network that learnt nothing looks nowhere; the other maps are still told."""
    folder = truth_in(tmp_path, np.abs(smooth(0)))
    empty, other = overlaps(iter([map_of(0 * smooth(1)), map_of(smooth(1))]), STUDY, folder)
    assert (empty.dice, empty.p) == (0.0, 1.0)
    assert other.chance_dice > 0
