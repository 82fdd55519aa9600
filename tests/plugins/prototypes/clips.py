"""Moving blobs, made when they are asked for: a stage before any scan (time as the third axis)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from client.data.reader import Found, Prepared, Source
from common.settings import Table

MOTIONS = ("left", "right", "up", "down")


class Clips:
    """Kind `proto-clips`: a textured blob that moves in one of four ways; (X, Y, T) float32."""

    dtype: ClassVar[str] = "float32"
    lazy: ClassVar[bool] = True

    class Study(Table):
        kind: Literal["proto-clips"] = Field(description="Clips of moving blobs.")
        shape: tuple[int, int, int] = Field(description="Pixels and frames.")

    class Site(Table):
        kind: Literal["proto-clips"] = Field(description="Clips of moving blobs.")
        seed: int = Field(description="Which clips.")
        clips: int = Field(24, description="How many.")

    @staticmethod
    def shape(study: Clips.Study) -> tuple[int, ...]:
        return study.shape

    @staticmethod
    def layout(study: Clips.Study) -> str:
        return "volume"

    @staticmethod
    def find(study: Clips.Study, site: Clips.Site, root: Path, columns: frozenset[str]) -> Found:
        seeds = [site.seed * 1_000_000 + number for number in range(site.clips)]
        return Found(
            sources=tuple(
                Source(participant=f"clip-{seed}", scan=f"clip-{seed}", stamp=str(seed),
                       row={"motion": MOTIONS[seed % 4]}, payload=seed)
                for seed in seeds
            )
        )  # fmt: skip

    @staticmethod
    def prepare(study: Clips.Study, source: Source) -> Prepared:
        random = np.random.default_rng(source.payload)
        x, y, t = np.meshgrid(*(np.linspace(-1, 1, n) for n in study.shape), indexing="ij")
        dx, dy = [(-1, 0), (1, 0), (0, 1), (0, -1)][source.payload % 4]
        at = random.uniform(-0.3, 0.3, 2)
        near = np.exp(-8 * ((x - at[0] - 0.6 * dx * t) ** 2 + (y - at[1] - 0.6 * dy * t) ** 2))
        clip = near + 0.1 * random.normal(size=study.shape)
        return Prepared(samples=clip[None].astype(np.float32))
