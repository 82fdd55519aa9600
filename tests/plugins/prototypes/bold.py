"""Volumes of functional runs and the network of DeepLight: a slice network, an LSTM over slices."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar, Literal

import nibabel as nib
import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from client.data.reader import Found, Prepared, Source
from common.settings import Table

SHIFT_S = 5.0  # of the haemodynamic response


class Bold:
    """Kind `proto-bold`: one labelled volume a sample, z-scored within its run.

    There is real data of one person only, so each run stands for a participant.
    """

    dtype: ClassVar[str] = "float16"

    class Study(Table):
        kind: Literal["proto-bold"] = Field(description="Volumes of functional runs.")
        shape: tuple[int, int, int] = Field(description="Voxels.")
        states: tuple[str, ...] = Field(description="Kept states.")

    class Site(Table):
        kind: Literal["proto-bold"] = Field(description="Volumes of functional runs.")
        runs: tuple[str, ...] = Field(description="Run files, absolute.")

    @staticmethod
    def shape(study: Bold.Study) -> tuple[int, ...]:
        return study.shape

    @staticmethod
    def layout(study: Bold.Study) -> str:
        return "volume"

    @staticmethod
    def find(study: Bold.Study, site: Bold.Site, root: Path, columns: frozenset[str]) -> Found:
        return Found(
            sources=tuple(
                Source(participant=Path(run).name.partition("_bold")[0], scan=Path(run).name,
                       stamp="1", row={}, payload=run)
                for run in site.runs
            )
        )  # fmt: skip

    @staticmethod
    def prepare(study: Bold.Study, source: Source) -> Prepared:
        image = nib.load(source.payload)
        run_XYZT = image.get_fdata(dtype=np.float32)
        states = _states(source.payload, run_XYZT.shape[3], float(image.header.get_zooms()[3]))
        spread = run_XYZT.std(-1, keepdims=True)
        z_XYZT = (run_XYZT - run_XYZT.mean(-1, keepdims=True)) / np.where(spread > 0, spread, 1)
        told = [t for t, state in enumerate(states) if state in study.states]
        samples = np.moveaxis(z_XYZT, -1, 0)[told].astype(np.float16)
        return Prepared(samples=samples, labels={"state": [states[t] for t in told]})


def _states(run: str, volumes: int, repetition_time_s: float) -> list[str]:
    """The state at each volume, the response being late."""
    with Path(run.replace("_bold.nii.gz", "_events.tsv")).open() as stream:
        events = list(csv.DictReader(stream, delimiter="\t"))
    states = ["none"] * volumes
    for event in events:
        begin = (float(event["onset"]) + SHIFT_S) / repetition_time_s
        end = begin + float(event["duration"]) / repetition_time_s
        for t in range(max(0, round(begin)), min(volumes, round(end))):
            states[t] = event["trial_type"]
    return states


class Slices(nn.Module):
    """(B, X, Y, Z) to (B, 2 H): a 2D network for each axial slice, an LSTM over the slices."""

    class Settings(Table):
        name: Literal["proto-slices"] = Field(description="This backbone.")
        channels: int = Field(4, description="Channels.")
        hidden: int = Field(6, description="Units of the LSTM in each direction.")

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        self.slice = nn.Sequential(
            nn.Conv2d(1, settings.channels, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(settings.channels, settings.channels, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        with torch.no_grad():
            size = self.slice(torch.zeros(1, 1, *shape[:2])).shape[1]
        self.climb = nn.LSTM(size, settings.hidden, batch_first=True, bidirectional=True)
        self.features = 2 * settings.hidden

    def forward(self, x: Tensor) -> Tensor:
        slices = x.movedim(3, 1).flatten(0, 1).unsqueeze(1)
        seen_BZF = self.slice(slices).unflatten(0, (len(x), -1))
        _, (last, _) = self.climb(seen_BZF)
        return last.transpose(0, 1).flatten(1)  # type: ignore[no-any-return]


def runs_of(data: Path) -> list[str]:
    """The coarse whole-brain runs."""
    return [str(path) for path in sorted(data.rglob("*acq-25mm*_bold.nii.gz"))]


def sites(data: Path) -> dict[str, Any]:
    """Nine runs of one person."""
    runs = runs_of(data)
    return {"alpha": runs[0:4], "beta": runs[4:8], "omega": runs[8:9]}
