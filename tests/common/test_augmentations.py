"""Augmentations change a sample as they say, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from common import catalogue
from common.augmentations.affine import transformed
from common.augmentations.bias_field import BiasField
from common.augmentations.crop import stretched
from common.augmentations.head import changed_inside
from common.errors import SettingError
from common.network.buildable import augmentations, check_buildable
from common.study import Study, parse_study
from tests.conftest import BRAINS, FEATURES, overridden

SHAPE = (12, 14, 12)


def study_of(*tables: dict[str, Any], shape: tuple[int, ...] = SHAPE) -> Study:
    changes = {"augmentation": list(tables), "data.shape": list(shape)}
    return parse_study(overridden(BRAINS, changes), Path("study.toml"))


def volume(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray[Any, Any]:
    made = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    made[:, :3] = 0
    return made


def blob(*middle: float, shape: tuple[int, ...] = (25, 27, 23)) -> np.ndarray[Any, Any]:
    """A round spot of a few voxels."""
    places = np.moveaxis(np.indices(shape), 0, -1) - np.array(middle)
    return np.exp(-np.square(places).sum(-1) / 8).astype(np.float32)


def middle_of(sample: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Where its mass lies."""
    return np.array([(places * sample).sum() for places in np.indices(sample.shape)]) / sample.sum()


@pytest.mark.parametrize("name", catalogue.names("augmentations"))
@pytest.mark.parametrize("shape", [SHAPE, (13, 9, 11), (8, 8, 40)])
def test_an_augmentation_keeps_form_and_its_input(name: str, shape: tuple[int, ...]) -> None:
    """The input may be a page of the disk's cache: writing into it would change the next epoch."""
    (augment,) = augmentations(study_of({"name": name}, shape=shape))
    sample = volume(shape)
    sample.setflags(write=False)
    first, again, other = (augment(sample, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == (shape, np.float32)
    np.testing.assert_array_equal(first, again)
    changed = [augment(sample, np.random.default_rng(seed)) for seed in range(8)]
    assert any((one != sample).any() for one in changed)
    assert any((one != other).any() for one in changed)
    assert all(np.isfinite(one).all() for one in changed)


@pytest.mark.parametrize("name", catalogue.names("augmentations"))
def test_an_augmentation_is_the_same_in_many_threads(name: str) -> None:
    """One object serves all of a loader's threads; state in it would mix up two samples."""
    (augment,) = augmentations(study_of({"name": name}))
    samples = [volume(seed=seed) for seed in range(24)]

    def one(number: int) -> bytes:
        return np.asarray(augment(samples[number], np.random.default_rng(number))).tobytes()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(24))) == [one(number) for number in range(24)]


@pytest.mark.parametrize("name", catalogue.names("augmentations"))
def test_an_augmentation_takes_what_another_gives(name: str) -> None:
    """A mirrored sample is a view with steps backwards; libraries of images like none of those."""
    (augment,) = augmentations(study_of({"name": name}))
    mirrored = volume()[::-1, :, ::-1]
    found = augment(mirrored, np.random.default_rng(1))
    wanted = augment(np.ascontiguousarray(mirrored), np.random.default_rng(1))
    np.testing.assert_array_equal(found, wanted)


def test_a_library_is_imported_when_a_sample_needs_it() -> None:
    """`callosum study check` names augmentations and applies none; MONAI alone takes 6 seconds."""
    code = (
        "import sys; from common import catalogue; "
        "[catalogue.load('augmentations', name) for name in catalogue.names('augmentations')]; "
        "print(*({'monai', 'SimpleITK', 'scipy', 'torch'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []


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


def test_an_affine_of_nothing_gives_the_sample_back() -> None:
    """To the bit: whatever the resampling does at half a voxel, it does not do it at none."""
    sample = volume((13, 9, 11))
    np.testing.assert_array_equal(transformed(sample, (0, 0, 0), 1.0, (0, 0, 0)), sample)


def test_a_turn_a_zoom_and_a_way_move_a_spot_to_where_they_say() -> None:
    """Axes in the wrong order, or the way back for the way there, would still look like a brain."""
    quarter = transformed(blob(12, 17, 11), (90, 0, 0), 1.0, (0, 0, 0))
    # about axis 0, from axis 1 towards axis 2, about the middle (12, 13, 11)
    np.testing.assert_allclose(middle_of(quarter), (12, 13, 15), atol=0.01)
    np.testing.assert_allclose(
        middle_of(transformed(blob(12, 13, 16), (0, 90, 0), 1.0, (0, 0, 0))),
        (17, 13, 11),
        atol=0.01,
    )
    np.testing.assert_allclose(
        middle_of(transformed(blob(17, 13, 11), (0, 0, 90), 1.0, (0, 0, 0))),
        (12, 18, 11),
        atol=0.01,
    )
    moved = transformed(blob(12, 13, 11), (0, 0, 0), 1.0, (1.5, -2.0, 0.25))
    np.testing.assert_allclose(middle_of(moved), (13.5, 11.0, 11.25), atol=0.01)
    zoomed = transformed(blob(12, 17, 11), (0, 0, 0), 1.25, (0, 0, 0))
    np.testing.assert_allclose(middle_of(zoomed), (12, 18, 11), atol=0.01)
    assert zoomed.sum() == pytest.approx(1.25**3 * blob(12, 17, 11).sum(), rel=0.01)


def test_an_affine_brings_nothing_in_and_stays_within_its_bounds() -> None:
    """A reflected border would be a second forehead."""
    settings = {"name": "affine", "degrees": 0.0, "zoom": 0.0, "voxels": 3.0}
    (affine,) = augmentations(study_of(settings))
    ones = np.ones(SHAPE, dtype=np.float32)
    for seed in range(20):
        made = affine(ones, np.random.default_rng(seed))
        assert 0 <= made.min() <= made.max() <= 1
        assert made.sum() >= np.prod(np.array(SHAPE) - 3.5)
    assert min(affine(ones, np.random.default_rng(seed)).sum() for seed in range(20)) < ones.sum()


def test_a_crop_of_all_gives_the_sample_back() -> None:
    """And a crop of a part holds that part alone, edge to edge."""
    sample = volume((13, 9, 11))
    np.testing.assert_array_equal(stretched(sample, np.ones(3), np.zeros(3)), sample)
    halves = np.repeat(np.array([1.0, 5.0], np.float32), 6)  # one axis of 12
    left = stretched(halves, np.array([0.5]), np.array([0.0]))
    assert (left[:-1] == 1).all()
    ramp = np.arange(20, dtype=np.float32)
    part = stretched(ramp, np.array([0.5]), np.array([0.25]))
    np.testing.assert_allclose(part, 4.75 + 0.5 * np.arange(20), atol=1e-5)  # cells of half a voxel


def test_a_crop_is_what_scipy_makes_of_it() -> None:
    """The same linear interpolation, in a fourth of the time."""
    random = np.random.default_rng(0)
    for _ in range(5):
        sample, kept = volume((13, 9, 11)), random.uniform(0.7, 1, 3)
        before = random.uniform(0, 1 - kept)
        first = before * sample.shape + (kept - 1) / 2
        wanted = ndimage.affine_transform(sample, kept, first, order=1, mode="nearest")
        np.testing.assert_allclose(stretched(sample, kept, before), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["gamma", "bias-field"])
def test_intensities_change_inside_the_head_and_stay_standardised(name: str) -> None:
    """Outside is 0 in every scan, and 0 is the head's mean: parted, they would tell the draw."""
    (augment,) = augmentations(study_of({"name": name}))
    sample = volume()
    for seed in range(5):
        made = augment(sample, np.random.default_rng(seed))
        assert (made[sample == 0] == 0).all()
        inside = sample != 0
        assert made[inside].mean() == pytest.approx(sample[inside].mean(), abs=1e-5)
        assert made[inside].std() == pytest.approx(sample[inside].std(), rel=1e-4)
        assert np.abs(made - sample).max() > 0.01
    for flat in (np.zeros(SHAPE, np.float32), np.full(SHAPE, 2, np.float32)):
        np.testing.assert_array_equal(augment(flat, np.random.default_rng(1)), flat)


def test_gamma_keeps_the_order_of_intensities() -> None:
    """Grey matter stays darker than white; how much darker is what changes."""
    (gamma,) = augmentations(study_of({"name": "gamma", "largest": 3.0}))
    sample = volume()
    order = np.argsort(sample[sample != 0])
    bent = []
    for seed in range(10):
        made = gamma(sample, np.random.default_rng(seed))[sample != 0][order]
        assert (np.diff(made) >= 0).all()
        bent.append(made[len(made) // 2] - (made[0] + made[-1]) / 2)
    assert min(bent) < -0.5 < 0.5 < max(bent)  # towards the dark, and towards the bright


def test_a_bias_field_is_smooth_and_of_the_whole_volume() -> None:
    """Of degree 1 it is a slope: what it multiplies by has no second difference in its logarithm."""
    settings = BiasField.Settings(name="bias-field", degree=1, strength=0.5)
    field = BiasField(settings, SHAPE).field(np.array([0.1, -0.2, 0.3]))  # axes 2, 1, 0
    x, y, z = (np.linspace(-1, 1, length) for length in SHAPE)
    wanted = 0.3 * x[:, None, None] - 0.2 * y[:, None] + 0.1 * z
    np.testing.assert_allclose(field, wanted, atol=1e-6)


def test_a_blur_smooths_and_keeps_the_mass() -> None:
    """Another resolution is not another brightness."""
    (blur,) = augmentations(study_of({"name": "blur"}, shape=(25, 27, 23)))
    spot = blob(12, 13, 11)
    found = [blur(spot, np.random.default_rng(seed)) for seed in range(10)]
    for made in found:
        assert made.sum() == pytest.approx(spot.sum(), rel=1e-3)
        np.testing.assert_allclose(middle_of(made), (12, 13, 11), atol=1e-3)
    assert all(made.max() <= spot.max() for made in found)
    assert min(made.max() for made in found) < 0.9 * spot.max()
    slab = np.zeros((25, 27, 23), np.float32)
    slab[0] = 1
    assert not blur(slab, np.random.default_rng(0))[10:].any()  # the other side is no neighbour


@pytest.mark.parametrize(("fill", "blank"), [("zero", 0.0), ("mean", 4.0)])
def test_a_cutout_blanks_cubes_and_nothing_else(fill: str, blank: float) -> None:
    """What is left is the sample's own; what is blank says nothing."""
    settings = {"name": "cutout", "cubes": 1, "largest": 0.5, "fill": fill}
    (cutout,) = augmentations(study_of(settings))
    sample = np.zeros(SHAPE, np.float32)
    sample[2:] = 3
    sample[2:][::2] = 5
    sizes = []
    for seed in range(30):
        gone = cutout(sample, np.random.default_rng(seed)) != sample
        if fill == "mean":
            places = np.argwhere(gone)
            sizes.append(np.ptp(places, axis=0) + 1)
            assert gone.sum() == np.prod(sizes[-1])  # a full box
        made = cutout(sample, np.random.default_rng(seed))
        assert (made[gone] == blank).all()
    assert fill == "zero" or np.max(sizes, axis=0).tolist() == [6, 7, 6]


@pytest.mark.slow
def test_monai_makes_the_same_of_the_same_parameters() -> None:
    """The field's own library is the oracle; it takes 6 seconds to import and twice the time."""
    from monai import transforms

    sample = np.pad(volume((13, 9, 11)), 5)  # borders of 0: each library has its own beyond them
    channel = torch.from_numpy(sample)[None]
    turn = Rotation.from_euler("xyz", (5, -9, 3), degrees=True).as_matrix()
    back = np.eye(4)
    back[:3, :3] = turn.T / 1.07
    back[:3, 3] = -back[:3, :3] @ (1.0, 2.0, 0.5)
    affine = transforms.Affine(affine=back, padding_mode="zeros", image_only=True)
    found = transformed(sample, (5, -9, 3), 1.07, (1.0, 2.0, 0.5))
    np.testing.assert_allclose(found, affine(channel)[0].numpy(), atol=1e-4)

    inside = volume() + 10  # nothing is 0 in it
    made = changed_inside(inside, lambda values, _: values ** np.float32(1.3))
    gamma = transforms.AdjustContrast(1.3, retain_stats=True)
    np.testing.assert_allclose(made, gamma(torch.from_numpy(inside)[None])[0].numpy(), atol=1e-3)

    field = transforms.RandBiasField(degree=3)._generate_random_field
    bias = BiasField(BiasField.Settings(name="bias-field"), SHAPE)
    of = np.random.default_rng(0).uniform(-1, 1, 19)
    np.testing.assert_allclose(bias.field(of), field(SHAPE, 3, [0.0, *of]), atol=1e-5)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"name": "flip", "axes": [3]}, "augmentation.1.axes is .3.; a sample has 3 axes"),
        ({"name": "shift", "voxels": 12}, "augmentation.1.voxels is 12; a sample has"),
        ({"name": "affine", "voxels": 12}, "augmentation.1.voxels is 12; a sample has"),
        ({"name": "blur", "voxels": 14}, "augmentation.1.voxels is 14; a sample has"),
    ],
)
def test_an_augmentation_that_does_not_fit_is_named(table: dict[str, Any], words: str) -> None:
    """At `study check`, not in the middle of a round at a hospital."""
    with pytest.raises(SettingError, match=words):
        check_buildable(study_of({"name": "noise"}, table), Path("study.toml"))


@pytest.mark.parametrize("name", ["affine", "bias-field"])
def test_what_turns_volumes_takes_no_tables(name: str) -> None:
    """A row of measures has no left and right."""
    study = parse_study({**FEATURES, "augmentation": [{"name": name}]}, Path("study.toml"))
    with pytest.raises(SettingError, match=f"augmentation.0.name is {name}.*a sample has .4."):
        check_buildable(study, Path("study.toml"))


def test_a_misspelt_augmentation_is_told_with_the_nearest() -> None:
    """As everything in a study."""
    with pytest.raises(SettingError, match='augmentation.0.name: .*"flipp".*did you mean flip'):
        study_of({"name": "flipp"})
    with pytest.raises(SettingError, match=r"augmentation is a list of tables"):
        parse_study({**BRAINS, "augmentation": {"name": "flip"}}, Path("study.toml"))
