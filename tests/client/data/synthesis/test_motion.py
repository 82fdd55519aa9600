"""Clips of moving blobs: each moves as its label says, and the same number is the same clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from client.data.synthesis import motion
from client.data.synthesis.motion import Clip, SyntheticVideoReader, draw
from common.kinds.synthetic_video import MOTIONS, SyntheticVideo

SHAPE = (16, 32, 32)


def study(**keys: Any) -> SyntheticVideo.Study:
    return SyntheticVideo.Study(kind="synthetic-video", **{"shape": SHAPE, **keys})


def find(clips: int, seed: int = 3) -> Any:
    site = SyntheticVideo.Site(kind="synthetic-video", seed=seed, clips=clips)
    return SyntheticVideoReader.find(study(), site, Path(), frozenset({"motion"}))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "_NOISE", 0.0)


def carried(frame: np.ndarray, way: str, by: float) -> np.ndarray:
    """A frame as a motion leaves it; pixels come from outside where it says nothing of them."""
    size = len(frame)
    step = 2 / (size - 1)
    rows, columns = np.indices(frame.shape)
    dy, dx = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}[way]
    at = [rows - dy * by / step, columns - dx * by / step]
    return ndimage.map_coordinates(frame, at, order=1, mode="nearest")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("way", ["left", "right", "up", "down"])
def test_what_is_carried_is_found_where_its_label_says(way: str) -> None:
    """An axis or a sign in the wrong place would teach another motion under this name."""
    number = MOTIONS.index(way)
    for k in range(5):
        clip = draw(Clip(1, number + 8 * k), (9, 65, 65))
        random = np.random.default_rng((1, number + 8 * k))
        random.uniform(0.1, 0.5)
        by = random.uniform(0.7, 1.2) / 8  # from one frame of nine to the next
        inside = (slice(12, -12), slice(12, -12))
        right, wrong = (
            np.abs(carried(clip[4], name, by) - clip[5])[inside].mean()
            for name in (way, {"left": "right", "right": "left", "up": "down", "down": "up"}[way])
        )
        assert right < 0.35 * wrong


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("way", "other"), [("expand", "shrink"), ("clockwise", "anticlockwise")])
def test_the_other_way_round_is_the_clip_backwards(way: str, other: str) -> None:
    """Growth and turning differ by the direction of time alone."""
    y, x = np.meshgrid(np.linspace(-1, 1, 9, dtype=np.float32),
                       np.linspace(-1, 1, 7, dtype=np.float32), indexing="ij")  # fmt: skip
    t = np.linspace(-0.5, 0.5, 5, dtype=np.float32)[:, None, None]
    there, back = (motion._moved(name, 1.0, t, y, x) for name in (way, other))
    np.testing.assert_allclose(there, [part[::-1] for part in back], atol=1e-6)


def test_growing_grows_and_clockwise_is_clockwise() -> None:
    """The words are those of whoever looks at the pictures, rows from the top."""
    t, one = np.float32(0.5) + np.zeros((1, 1, 1), np.float32), np.ones((1, 1), np.float32)
    y, x = motion._moved("expand", 1.0, t, 0 * one, one)
    assert x < 1  # what was near the centre is seen further out
    assert y == 0
    # after a quarter of a turn or so, what is seen below was to the right before
    y, x = motion._moved("clockwise", np.pi / 2, t, one, 0 * one)
    np.testing.assert_allclose([y.item(), x.item()], [0, 1], atol=1e-6)


def test_a_clip_is_the_same_whatever_else_is_drawn() -> None:
    """A larger site keeps its clips; each motion is as frequent as the others."""
    few, many = find(3).sources, find(24).sources
    assert few == many[:3]
    assert [source.row["motion"] for source in many] == list(MOTIONS) * 3
    again = [SyntheticVideoReader.prepare(study(), source).samples for source in reversed(many)]
    for source, samples in zip(many, reversed(again), strict=True):
        np.testing.assert_array_equal(
            SyntheticVideoReader.prepare(study(), source).samples, samples
        )
    assert len({samples.tobytes() for samples in again}) == 24
    assert find(3, seed=4).sources[0].participant != few[0].participant


@pytest.mark.parametrize(("intensity", "mean", "spread"), [("zscore", 0, 1), ("unit", 0.5, 0.25)])
def test_clips_have_the_form_that_the_study_says(
    intensity: str, mean: float, spread: float
) -> None:
    """As real clips have it, so that a network can go on with those."""
    agreed = study(intensity=intensity)
    for source in find(8).sources:
        sample = SyntheticVideoReader.prepare(agreed, source).samples
        assert sample.shape == (1, *SyntheticVideo.shape(agreed))
        assert sample.dtype == np.dtype(SyntheticVideo.dtype)
        wide = sample.astype(float)
        assert wide.mean() == pytest.approx(mean, abs=1e-3 if mean == 0 else 0.5)
        assert wide.std() == pytest.approx(spread, abs=1e-3 if mean == 0 else 0.25)
