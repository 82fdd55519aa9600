"""A package that a hospital might install beside Callosum: each of the three seams, very small.

What they learn can be worked out on paper, so that a whole federated run has an exact answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from client.data.finding import Finding
from client.data.reader import Found, Prepared, Source
from common.errors import ScanError
from common.objectives.multitask import Multitask
from common.seams import FROZEN, LABELS, SHARED, SITE, Terms
from common.settings import Table


class Lines:
    """One text file a participant: a first line with the age, then a sample a line.

    A sample is `width` numbers and the word of its phase.
    """

    dtype: ClassVar[str] = "float32"

    class Study(Table):
        kind: Literal["toy-lines"] = Field(description="Lines of numbers.")
        width: int = Field(description="Numbers in a line.")

    class Site(Table):
        kind: Literal["toy-lines"] = Field(description="Lines of numbers.")
        folder: str = Field(description="Folder of the files, relative to the site file.")

    @staticmethod
    def shape(study: Lines.Study) -> tuple[int, ...]:
        return (study.width,)

    @staticmethod
    def layout(study: Lines.Study) -> str:
        return "table"

    @staticmethod
    def find(study: Lines.Study, site: Lines.Site, root: Path, columns: frozenset[str]) -> Found:
        sources, findings = [], []
        for path in sorted((root / site.folder).glob("*.txt")):
            first = path.read_text().partition("\n")[0]
            if not first.startswith("age "):
                findings.append(Finding(what=path.name, problem="tells no age", left_out=True))
                continue
            row = {"age": first.removeprefix("age ")}
            stamp = str(path.stat().st_mtime_ns)
            sources.append(
                Source(
                    participant=path.stem, scan=path.stem, stamp=stamp, row=row, payload=str(path)
                )
            )
        return Found(sources=tuple(sources), findings=tuple(findings))

    @staticmethod
    def prepare(study: Lines.Study, source: Source) -> Prepared:
        cells = [line.split() for line in Path(source.payload).read_text().splitlines()[1:]]
        if any(len(line) != study.width + 1 for line in cells):
            raise ScanError(f"a line does not hold {study.width} numbers and a word")
        samples = np.array([line[:-1] for line in cells], dtype=np.float32)
        return Prepared(samples=samples, labels={"phase": [line[-1] for line in cells]})


class Gain(nn.Module):
    """(B, F) to (B, F), twice as large, by an array that nobody trains."""

    class Settings(Table):
        name: Literal["toy-gain"] = Field(description="This backbone.")
        gain: float = Field(2.0, description="Factor.")

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"toy-gain takes tables; data.shape gives {list(shape)}")
        self.gain = nn.Parameter(torch.full(shape, settings.gain))
        self.features = shape[0]

    def owner(self, name: str) -> str:
        return FROZEN

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Adapted(nn.Module):
    """A frozen layer with batch normalisation, and a correction of rank one that is trained."""

    class Settings(Table):
        name: Literal["toy-adapted"] = Field(description="This backbone.")

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(shape[0], 5), nn.BatchNorm1d(5))
        self.down = nn.Parameter(torch.randn(shape[0], 1))
        self.up = nn.Parameter(torch.zeros(1, 5))
        self.features = 5

    def owner(self, name: str) -> str:
        return FROZEN if name.startswith("base.") else SHARED

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down @ self.up


class Centre(nn.Module):
    """Learns, without labels, the mean of the features; and their level, shared and as one's own.

    Each loss is half a squared distance, so a step of rate r and weight w goes r w of the way.
    """

    class Settings(Table):
        name: Literal["toy-centre"] = Field(description="This objective.")
        level_weight: float = Field(0.5, description="Weight of the level.")

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.weights = {"centre": 1.0, "level": settings.level_weight, "own": 1.0}
        self.centre = nn.Parameter(torch.zeros(backbone.features))
        self.level = nn.Parameter(torch.zeros(()))  # an array without axes must travel too
        self.own = nn.Parameter(torch.zeros(()))

    def owner(self, name: str) -> str:
        return SITE if name == "own" else SHARED

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        features_BF = self.backbone(x)
        level_B = features_BF.mean(1)
        distances = {
            "centre": (self.centre - features_BF).square().sum(1) / 2,
            "level": (self.level - level_B).square() / 2,
            "own": (self.own - level_B).square() / 2,
        }
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return {name: Terms(values=v, counted=everyone) for name, v in distances.items()}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        return {}


class OwnHeads(Multitask):
    """Multitask learning with heads that never leave their site."""

    class Settings(Multitask.Settings):
        name: Literal["toy-own-heads"] = Field(description="This objective.")  # type: ignore[assignment]

    def owner(self, name: str) -> str:
        group = super().owner(name)
        return SITE if group.startswith(LABELS) else group


class Pairs(nn.Module):
    """A loss over pairs: features should differ from those of the rest of the batch."""

    coupled: ClassVar[bool] = True
    weights: ClassVar[dict[str, float]] = {"pairs": 1.0}

    class Settings(Table):
        name: Literal["toy-pairs"] = Field(description="This objective.")

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone

    def owner(self, name: str) -> str:
        return SHARED

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        near_BB = (-torch.cdist(self.backbone(x), self.backbone(x)).square()).exp()
        values = near_BB.sum(1)
        return {"pairs": Terms(values=values, counted=torch.ones_like(values, dtype=torch.bool))}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        return {}
