"""Augmentations change a sample as they say, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import catalogue
from common.errors import SettingError
from common.network.buildable import augmentations, check_buildable
from common.study import Study, parse_study
from tests.conftest import BRAINS

SHAPE = (12, 14, 12)


def study_of(*tables: dict[str, Any]) -> Study:
    return parse_study({**BRAINS, "augmentation": list(tables)}, Path("study.toml"))


def volume() -> np.ndarray[Any, Any]:
    made = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    made[:, :3] = 0
    return made


@pytest.mark.parametrize("name", catalogue.names("augmentations"))
def test_an_augmentation_keeps_form_and_its_input(name: str) -> None:
    """The input may be a page of the disk's cache: writing into it would change the next epoch."""
    (augment,) = augmentations(study_of({"name": name}))
    sample = volume()
    sample.setflags(write=False)
    first, again, other = (augment(sample, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == (SHAPE, np.float32)
    np.testing.assert_array_equal(first, again)
    changed = [augment(sample, np.random.default_rng(seed)) for seed in range(8)]
    assert any((one != sample).any() for one in changed)
    assert any((one != other).any() for one in changed)


def test_a_flip_is_a_mirror() -> None:
    """Twice is nothing."""
    (flip,) = augmentations(study_of({"name": "flip", "axes": [0, 2], "chance": 1.0}))
    sample, random = volume(), np.random.default_rng(0)
    np.testing.assert_array_equal(flip(sample, random), sample[::-1, :, ::-1])
    np.testing.assert_array_equal(flip(flip(sample, random), random), sample)


def test_a_shift_moves_by_whole_voxels_and_brings_nothing_in() -> None:
    """What leaves on one side must not come back on the other: heads are no tori."""
    (shift,) = augmentations(study_of({"name": "shift", "voxels": 2}))
    sample = np.zeros(SHAPE, dtype=np.float32)
    sample[5, 6, 7] = 1
    places = set()
    for seed in range(200):
        moved = shift(sample, np.random.default_rng(seed))
        assert moved.sum() == 1
        places.add(tuple(int(i) for i in np.argwhere(moved)[0]))
    assert {np.abs(np.array(place) - (5, 6, 7)).max() for place in places} == {0, 1, 2}
    edge = np.ones(SHAPE, dtype=np.float32)
    sums = [shift(edge, np.random.default_rng(seed)).sum() for seed in range(50)]
    assert min(sums) < edge.sum() == max(sums)


def test_contrast_and_brightness_leave_what_is_outside_alone() -> None:
    """Outside the head is 0 in every scan; a site must not learn its offset there."""
    (scale,) = augmentations(study_of({"name": "scale", "factor": 0.5, "offset": 1.0}))
    sample = volume()
    made = scale(sample, np.random.default_rng(3))
    assert (made[sample == 0] == 0).all()
    inside = sample != 0
    slope, intercept = np.polyfit(sample[inside], made[inside], 1)
    assert 0.5 <= slope <= 1.5
    assert -1 <= intercept <= 1
    np.testing.assert_allclose(made[inside], slope * sample[inside] + intercept, atol=1e-4)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"name": "flip", "axes": [3]}, "augmentation.1.axes is .3.; a sample has 3 axes"),
        ({"name": "shift", "voxels": 12}, "augmentation.1.voxels is 12; a sample has"),
    ],
)
def test_an_augmentation_that_does_not_fit_is_named(table: dict[str, Any], words: str) -> None:
    """At `study check`, not in the middle of a round at a hospital."""
    with pytest.raises(SettingError, match=words):
        check_buildable(study_of({"name": "noise"}, table), Path("study.toml"))


def test_a_misspelt_augmentation_is_told_with_the_nearest() -> None:
    """As everything in a study."""
    with pytest.raises(SettingError, match='augmentation.0.name: .*"flipp".*did you mean flip'):
        study_of({"name": "flipp"})
    with pytest.raises(SettingError, match=r"augmentation is a list of tables"):
        parse_study({**BRAINS, "augmentation": {"name": "flip"}}, Path("study.toml"))
