"""Draws clips of one to three textured blobs that all move in one of eight ways.

Letters in shapes: T frames, Y rows from the top, X columns from the left; K waves of a texture.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.data.reader import Found, Prepared, Source
from client.data.readers.frames import scaled
from common.kinds.synthetic_video import MOTIONS, SyntheticVideo

_WAVES: Final = 3  # of a blob's texture
_NOISE: Final = 0.05
_WAYS: Final = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows, columns

Floats = NDArray[np.float32]


class Clip(NamedTuple):
    """Which one: a site's seed and a number, which also says the motion."""

    seed: int
    number: int

    @property
    def motion(self) -> str:
        """One of eight, each as often as the others."""
        return MOTIONS[self.number % len(MOTIONS)]


class SyntheticVideoReader:
    """A clip for each number from 0, whatever else is drawn."""

    lazy: ClassVar[bool] = True

    @staticmethod
    def find(
        study: SyntheticVideo.Study, site: SyntheticVideo.Site, root: Path, columns: frozenset[str]
    ) -> Found:
        """One source a clip, with its motion."""
        clips = (Clip(site.seed, number) for number in range(site.clips))
        return Found(sources=tuple(_source(clip) for clip in clips), columns=("motion",))

    @staticmethod
    def prepare(study: SyntheticVideo.Study, source: Source) -> Prepared:
        """The clip: (1, T, Y, X) float16, the same each time."""
        drawn = scaled(draw(source.payload, study.shape), study.intensity)
        return Prepared(samples=drawn.astype(np.float16)[None])


def draw(clip: Clip, shape: tuple[int, int, int]) -> Floats:
    """(T, Y, X) grey values from 0 to 1: blobs over a plain ground, with some noise."""
    random = np.random.default_rng((clip.seed, clip.number))
    frames, rows, columns = shape
    t = np.linspace(-0.5, 0.5, frames, dtype=np.float32)[:, None, None]
    y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, columns, dtype=np.float32)
    ground, speed = random.uniform(0.1, 0.5), random.uniform(0.7, 1.2)
    picture = np.full(shape, ground, dtype=np.float32)
    for _ in range(random.integers(1, 4)):
        centre = random.uniform(-0.5, 0.5, size=2)
        at_TYX = _moved(clip.motion, speed, t, y - np.float32(centre[0]), x - np.float32(centre[1]))
        picture += _blob(random, *at_TYX)
    picture += np.float32(_NOISE) * random.standard_normal(shape, dtype=np.float32)
    return np.clip(picture, 0, 1)


def _moved(motion: str, speed: float, t: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Where on a blob each pixel lies at each time: rows and columns (T, Y, X) from its centre."""
    by = np.float32(speed) * t
    if motion in _WAYS:
        rows, columns = _WAYS[motion]
        return y - rows * by + 0 * x, x - columns * by + 0 * y
    if motion in ("expand", "shrink"):
        growth = np.exp(-by if motion == "expand" else by)
        return y * growth + 0 * x, x * growth + 0 * y
    turn = 2 * by if motion == "clockwise" else -2 * by  # as seen with rows from the top
    return np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x


def _blob(random: np.random.Generator, y: Floats, x: Floats) -> Floats:
    """An oval with stripes of its own, brighter or darker than the ground."""
    long, short = np.float32(random.uniform(0.25, 0.45)), np.float32(random.uniform(0.15, 0.25))
    tilt = random.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    oval = np.exp(-(((cos * x + sin * y) / long) ** 2) - ((cos * y - sin * x) / short) ** 2)
    waves_K2 = random.normal(0, 8, size=(_WAVES, 2)).astype(np.float32)
    phases_K = random.uniform(0, 2 * np.pi, size=_WAVES).astype(np.float32)
    texture = sum(
        np.cos(wave[0] * y + wave[1] * x + phase)
        for wave, phase in zip(waves_K2, phases_K, strict=True)
    )
    bright = np.float32(random.choice((-1, 1)) * random.uniform(0.3, 0.6))
    return np.asarray(oval * (bright + np.float32(0.5 / _WAVES) * texture), dtype=np.float32)


def _source(clip: Clip) -> Source:
    name = f"clip-{clip.seed}-{clip.number:06d}"
    return Source(
        participant=name,
        scan=name,
        stamp=f"{clip.seed}-{clip.number}",
        row={"motion": clip.motion},
        payload=clip,
    )
