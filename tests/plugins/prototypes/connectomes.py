"""Connectomes from time series, and a decoder in which every class is a token with a name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from client.data.reader import Found, Prepared, Source
from common.errors import ScanError
from common.seams import LABELS, SHARED, Terms
from common.settings import Table

NAMES = ["participant", "age", "sex", "task"]


class Connectome:
    """Correlations between regions; one file of (T, R) series a participant, and a table."""

    dtype: ClassVar[str] = "float32"

    class Study(Table):
        kind: Literal["proto-connectome"] = Field(description="Connectomes.")
        regions: int = Field(description="Regions.", ge=2)

    class Site(Table):
        kind: Literal["proto-connectome"] = Field(description="Connectomes.")
        folder: str = Field(description="Folder with people.tsv and PARTICIPANT.npy.")

    @staticmethod
    def shape(study: Connectome.Study) -> tuple[int, ...]:
        return (study.regions, study.regions)

    @staticmethod
    def layout(study: Connectome.Study) -> str:
        return "matrix"


class ConnectomeReader:
    """The other half: a package may bring them apart."""

    @staticmethod
    def find(
        study: Connectome.Study, site: Connectome.Site, root: Path, columns: frozenset[str]
    ) -> Found:
        lines = (root / site.folder / "people.tsv").read_text().splitlines()
        names = lines[0].split("\t")
        rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines[1:]]
        return Found(
            sources=tuple(
                Source(
                    participant=row["participant"],
                    scan=row["participant"],
                    stamp="1",
                    row=row,
                    payload=str(root / site.folder / f"{row['participant']}.npy"),
                )
                for row in rows
            )
        )

    @staticmethod
    def prepare(study: Connectome.Study, source: Source) -> Prepared:
        series_TR = np.load(source.payload, allow_pickle=False)
        if series_TR.shape[1] != study.regions:
            raise ScanError(f"{series_TR.shape[1]} regions, {study.regions} needed")
        fc_RR = np.arctanh(np.clip(np.corrcoef(series_TR.T), -0.999, 0.999))
        np.fill_diagonal(fc_RR, 0)
        edges = fc_RR[np.triu_indices(study.regions, 1)]
        return Prepared(samples=fc_RR[None].astype(np.float32), measures=edges[None])


class Rows(nn.Module):
    """Connectomes (B, R, R) to (B, E); `regions` gives each region's own features (B, R, E)."""

    class Settings(Table):
        name: Literal["proto-rows"] = Field(description="This backbone.")
        width: int = Field(8, description="Features of a region.")

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        self.row = nn.Sequential(nn.Linear(shape[1], settings.width), nn.LeakyReLU())
        self.features = settings.width

    def regions(self, x: Tensor) -> Tensor:
        return self.row(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.regions(x).mean(1)


class Tokens(nn.Module):
    """Named tokens look at the regions; a token's score is the logit of its class.

    The readout has two stages: first tokens are read as they are, later through attention.
    """

    finetunes = True

    class Settings(Table):
        name: Literal["proto-tokens"] = Field(description="This objective.")
        targets: tuple[str, ...] = Field((), description="Targets to learn.")

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Any]) -> None:
        super().__init__()
        width = backbone.features
        self.backbone, self.targets = backbone, dict(targets)
        self.weights = dict.fromkeys(targets, 1.0)
        self.tokens = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(t.outputs + (t.kind == "binary"), width) / width**0.5)
             for name, t in targets.items()}
        )  # fmt: skip
        self.look = nn.MultiheadAttention(width, 2, batch_first=True)
        self.score = nn.Linear(width, 1)
        self.late = False

    def owner(self, name: str) -> str:
        return LABELS + name.removeprefix("tokens.") if name.startswith("tokens.") else SHARED

    def begin(self, epoch: int, of: int) -> None:
        self.late = 2 * epoch >= of

    def tune(self, method: str, task: Any) -> Any:
        if method != "tokens":
            return NotImplemented
        return [f"tokens.{task.target_name}"]  # all else rests: it was told which task is meant

    def features(self, x: Tensor) -> Tensor:
        return self.backbone.regions(x).amax(1)  # type: ignore[no-any-return]

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        table = torch.cat(list(self.tokens.values())).expand(len(x), -1, -1)
        seen_BRE = self.backbone.regions(x)
        drawn = seen_BRE.mean(1, keepdim=True) * table
        if self.late:
            drawn = drawn + self.look(table, seen_BRE, seen_BRE, need_weights=False)[0]
        scores = self.score(drawn)[..., 0] + drawn.sum(-1)
        sizes = [len(group) for group in self.tokens.values()]
        return dict(zip(self.tokens, scores.split(sizes, 1), strict=True))

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        found = {}
        for name, logits in self.logits(x).items():
            target, counted = self.targets[name], ~torch.isnan(labels[name])
            known = torch.where(counted, labels[name], 0.0)
            if target.kind == "regression":
                values = (logits[:, 0] - (known - target.centre) / target.scale).square()
            else:
                values = functional.cross_entropy(logits, known.long(), reduction="none")
            found[name] = Terms(values=values, counted=counted)
        return found

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        for name, logits in self.logits(x).items():
            target = self.targets[name]
            if target.kind == "regression":
                found[name] = logits[:, 0] * target.scale + target.centre
            else:
                chances = torch.softmax(logits, 1)
                found[name] = chances[:, 1] if target.kind == "binary" else chances
        return found


def write(folder: Path, name: str, seed: int, people: int = 30, regions: int = 8) -> None:
    """Series whose correlations go with age and sex."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    lines = ["\t".join(NAMES)]
    for number in range(people):
        age, sex, task = random.uniform(20, 80), random.integers(2), random.integers(3)
        mix = np.eye(regions) + 0.6 * np.outer(
            np.sin(np.arange(regions) + age / 30), np.cos(np.arange(regions) * (1 + sex) + task)
        )
        series = random.normal(size=(60, regions)) @ mix
        np.save(folder / f"{name}-{number}.npy", series.astype(np.float32))
        lines.append(f"{name}-{number}\t{age:.1f}\t{'FM'[sex]}\t{'abc'[task]}")
    (folder / "people.tsv").write_text("\n".join(lines) + "\n")
