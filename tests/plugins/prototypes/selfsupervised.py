"""Learning without labels: two views that should agree, and patches that are hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from common.seams import SHARED, Terms
from common.settings import Table


class SimClr(nn.Module):
    """NT-Xent (Chen et al. 2020) over two views of each sample, negatives from the same batch."""

    coupled: ClassVar[bool] = True
    weights: ClassVar[dict[str, float]] = {"contrast": 1.0}

    class Settings(Table):
        name: Literal["proto-simclr"] = Field(description="This objective.")
        temperature: float = Field(0.5, description="Divides similarities.", gt=0)

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings, self.backbone = settings, backbone
        self.project = nn.Linear(backbone.features, 8)

    def owner(self, name: str) -> str:
        return SHARED

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        assert not labels  # none is its business
        views = torch.cat([self._view(x), self._view(x)])
        z = functional.normalize(self.project(self.backbone(views)), dim=1)
        alike = (z @ z.T / self.settings.temperature).fill_diagonal_(float("-inf"))
        other = torch.arange(len(z), device=x.device).roll(len(x))
        values = functional.cross_entropy(alike, other, reduction="none").view(2, -1).mean(0)
        return {"contrast": Terms(values=values, counted=torch.ones_like(values, dtype=torch.bool))}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        return {}

    def _view(self, x: Tensor) -> Tensor:
        turned = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        return torch.where(turned, x.flip(1), x) + 0.1 * torch.randn_like(x)


class Patches(nn.Module):
    """A small vision transformer: (B, X, Y, Z) in cubes, through attention, to (B, E)."""

    class Settings(Table):
        name: Literal["proto-patches"] = Field(description="This backbone.")
        edge: int = Field(4, description="Edge of a cube in voxels.")
        width: int = Field(12, description="Features of a cube.")

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        self.edge = settings.edge
        self.whole = tuple(-(-length // self.edge) * self.edge for length in shape)
        cubes = [length // self.edge for length in self.whole]
        self.count = cubes[0] * cubes[1] * cubes[2]
        self.embed = nn.Linear(self.edge**3, settings.width)
        self.place = nn.Parameter(0.02 * torch.randn(self.count, settings.width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(settings.width, 2, 2 * settings.width, 0.0,
                                       batch_first=True, norm_first=True) for _ in range(2)
        )  # fmt: skip
        self.features = settings.width

    def stages(self) -> list[nn.Module]:
        return [self.embed, *self.layers]

    def cubes(self, x: Tensor) -> Tensor:
        """(B, N, edge^3)."""
        more = [w - n for w, n in zip(self.whole, x.shape[1:], strict=True)]
        x = functional.pad(x, (0, more[2], 0, more[1], 0, more[0]))
        for axis in (1, 2, 3):
            x = x.unfold(axis, self.edge, self.edge)
        return x.flatten(1, 3).flatten(2)

    def encode(self, cubes_BNV: Tensor, seen_BM: Tensor | None = None) -> Tensor:
        """Features of the cubes, or of those that are seen alone."""
        tokens = self.embed(cubes_BNV) + self.place
        if seen_BM is not None:
            tokens = tokens.gather(1, seen_BM[..., None].expand(-1, -1, tokens.shape[2]))
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(self.cubes(x)).mean(1)


class Masked(nn.Module):
    """A masked autoencoder (He et al. 2022): the encoder sees a quarter of the cubes, no more."""

    weights: ClassVar[dict[str, float]] = {"reconstruction": 1.0}

    class Settings(Table):
        name: Literal["proto-masked"] = Field(description="This objective.")
        hidden: float = Field(0.75, description="Share of cubes that are hidden.", gt=0, lt=1)

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Any]) -> None:
        super().__init__()
        if not hasattr(backbone, "encode"):
            raise ValueError("proto-masked needs a backbone with `encode`, such as proto-patches")
        self.backbone = backbone
        self.kept = max(1, round(backbone.count * (1 - settings.hidden)))
        self.hidden = nn.Parameter(torch.zeros(backbone.features))
        self.decode = nn.Sequential(nn.Linear(backbone.features, backbone.edge**3))

    def owner(self, name: str) -> str:
        return SHARED

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        cubes_BNV = self.backbone.cubes(x)
        seen_BM = torch.rand(cubes_BNV.shape[:2], device=x.device).argsort(1)[:, : self.kept]
        encoded_BME = self.backbone.encode(cubes_BNV, seen_BM)
        table_BNE = self.hidden.expand(*cubes_BNV.shape[:2], -1) + self.backbone.place
        at = seen_BM[..., None].expand_as(encoded_BME)
        made_BNV = self.decode(table_BNE.scatter(1, at, encoded_BME))
        wrong_BN = (made_BNV - cubes_BNV).square().mean(2).scatter(1, seen_BM, 0.0)
        values = wrong_BN.sum(1) / (cubes_BNV.shape[1] - self.kept)
        everyone = torch.ones_like(values, dtype=torch.bool)
        return {"reconstruction": Terms(values=values, counted=everyone)}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        return {}
