"""A head is rendered as the formula says, the same bits whatever else is rendered and on what."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from client.data.synthesis.anatomy import Anatomy, Head, Scanner, build_anatomy, render
from client.data.synthesis.people import BRIGHTNESS, Hospital, draw_people, scan
from client.data.synthesis.regions import Floats


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    """10 mm voxels: the coarsest grid on which all checks below still hold."""
    return build_anatomy(10)


@pytest.mark.parametrize("spacing_mm", [5.0, 8.0])
def test_the_grid_plays_no_part_in_the_anatomy(anatomy: Anatomy, spacing_mm: float) -> None:
    """A person must be the same person at every resolution, and the brain of one size."""
    other = build_anatomy(spacing_mm)
    np.testing.assert_array_equal(other.regions.centres_mm, anatomy.regions.centres_mm)
    np.testing.assert_array_equal(other.modes.shape.disease, anatomy.modes.shape.disease)
    np.testing.assert_array_equal(other.modes.contrast.disease, anatomy.modes.contrast.disease)
    litres = [a.brain.sum() * a.spacing_mm**3 / 1e6 for a in (anatomy, other)]
    np.testing.assert_allclose(litres, 1.88, rtol=0.01)


def test_the_warp_is_the_published_sum_over_regions(anatomy: Anatomy) -> None:
    """The flattened, float32 warp against the formula, one voxel and one region at a time."""
    scales = np.random.default_rng(0).normal(size=len(anatomy.regions.names))
    fast = (scales @ anatomy.warp).reshape(3, -1)
    for voxel in range(0, fast.shape[1], 201):
        x = anatomy.affine[:3, :3] @ anatomy.voxels[:, voxel] + anatomy.affine[:3, 3]
        slow = np.zeros(3)
        regions = zip(scales, anatomy.regions.centres_mm, anatomy.regions.widths_mm, strict=True)
        for scale, centre, width in regions:
            slow += scale * (x - centre) * np.exp(-((x - centre) ** 2).sum() / (2 * width**2))
        np.testing.assert_allclose(fast[:, voxel] * anatomy.spacing_mm, slow, atol=1e-3)


def plain_head(
    anatomy: Anatomy, region: str = "", scale: float = 0.0, brightness: Floats | float = 0.0
) -> Head:
    scales = np.array([scale * (region in name) for name in anatomy.regions.names])
    bright = np.broadcast_to(brightness, scales.shape)
    return Head(log_scales=scales, brightness=bright, size=0.0, age_z=0.0, thinning=0.1)


def photograph(anatomy: Anatomy, head: Head) -> Floats:
    """An image without noise, always in the same position."""
    scanner = Scanner(
        gamma=1, grey_shift=0, white_shift=0, bias=np.zeros(6), blur_voxels=0, noise=0, zoom=0
    )
    return render(anatomy, head, scanner, np.random.default_rng(0)).astype(np.float64)


def test_a_larger_ventricle_holds_more_fluid() -> None:
    """The sign of the warp: a positive log-scale magnifies, else ageing would run backwards."""
    anatomy = build_anatomy(5)
    region = anatomy.regions.names.index("left_frontal_ventricle")
    grid = np.moveaxis(np.indices(anatomy.shape), 0, -1) * 5 + anatomy.affine[:3, 3]
    squared = ((grid - anatomy.regions.centres_mm[region]) ** 2).sum(-1)
    around = np.exp(-squared / (2 * anatomy.regions.widths_mm[region] ** 2))
    heads = [plain_head(anatomy, "frontal_ventricle", scale) for scale in (-0.2, -0.1, 0, 0.1, 0.2)]
    brightness = [np.average(photograph(anatomy, head), weights=around) for head in heads]
    assert (np.diff(brightness) < 0).all(), "fluid is the darkest tissue"


def test_part_of_the_disease_moves_nothing(anatomy: Anatomy) -> None:
    """Region volumes must not see it, else the linear model wins at every sample size."""
    ill = BRIGHTNESS * anatomy.modes.contrast.disease
    images = [photograph(anatomy, plain_head(anatomy, brightness=b)) for b in (0.0, ill)]
    np.testing.assert_array_equal(images[0] > 0, images[1] > 0)
    assert (images[1] - images[0])[anatomy.brain].std() > 0.02


def test_brightness_has_the_promised_amplitude_in_grey_matter(anatomy: Anatomy) -> None:
    """Its constant is of an image's scale: random regions of sd 1 are a field of sd 1."""
    fields = np.random.default_rng(0).normal(size=(200, len(anatomy.brightness)))
    grey = anatomy.tissues[0][anatomy.near]
    square = ((fields @ anatomy.brightness) ** 2).mean(0)
    assert np.sqrt(np.average(square, weights=grey)) == pytest.approx(1, abs=0.1)


def test_bits_of_a_scan_do_not_depend_on_other_scans(anatomy: Anatomy) -> None:
    """A resumed write skips scans, so no draw may come from a shared stream."""
    hospital = Hospital(name="alpha", participants=3)
    people = draw_people(hospital, anatomy.modes)
    forwards = [scan(anatomy, hospital, people, n) for n in range(3)]
    backwards = [scan(anatomy, hospital, people, n) for n in reversed(range(3))]
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_bits_of_a_scan_do_not_depend_on_threads() -> None:
    """One seed promises the same bits on a laptop and on a server with 64 cores."""
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            anatomy = build_anatomy(5)
            hospital = Hospital(name="alpha", participants=40)
            people = draw_people(hospital, anatomy.modes)
            found.append([scan(anatomy, hospital, people, n) for n in range(40)])
    np.testing.assert_array_equal(*found)
