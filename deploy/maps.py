"""RUN/maps: where tuned networks look, as NIfTI for other programs and as pictures for the report.

Sites send means over their test participants alone (`then = ["explain"]`), and only where enough
people stand behind them. Here they are averaged over sites, each site once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.data.anatomy.glass_brain import drawn, image_of, in_a_path, packed
from common.protocol.wire import open_arrays
from common.runtime.durable import write_atomically
from common.study import Study, with_plugins
from server.run import Run

FOLDER: Final = "maps"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMap:
    """The mean map (X, Y, Z) of one way to learn a task, for one class or for everyone."""

    task: str
    way: str
    group: str
    number: int
    sites: tuple[str, ...]
    volume: NDArray[np.float32]

    @property
    def stem(self) -> str:
        """Its path below `RUN/maps`, without an ending."""
        return f"{self.task}/{self.way}/{self.number:02d}-{in_a_path(self.group)}"


def write_maps(run: Run) -> list[Path]:
    """Write every group map of a run of volumes; the NIfTI files' paths.

    Of scans that were laid on MNI152 it draws each map that is new, too.

    Raises
    ------
    DamagedError
        If a site's report is not what was written.
    StorageError
        If the disk is full.
    """
    if with_plugins(run.study).layout != "volume":
        return []
    written = []
    for found in group_maps(run):
        image = nifti_of(run.study, found)
        path, content = run.folder / FOLDER / f"{found.stem}.nii.gz", packed(image)
        picture = run.folder / FOLDER / f"{found.stem}.png"
        if not path.exists() or path.read_bytes() != content or not picture.exists():
            write_atomically(path, content)
            if getattr(run.study.data, "align", "") == "world" and found.volume.any():
                write_atomically(picture, drawn(image))
        written.append(path)
    return written


def group_maps(run: Run) -> Iterator[GroupMap]:
    """Means over repeats and sites, task by task and way by way."""
    for task in run.study.finetuning:
        classes = run.study.targets[task.target].classes
        folder = run.folder / "explain" / task.name
        reports: dict[str, dict[str, list[NDArray[np.float32]]]] = {}
        for file in sorted(folder.glob("*-repeat*/*.safetensors")):
            way = file.parent.name.rpartition("-repeat")[0]
            with open_arrays(file) as stored:
                reports.setdefault(way, {}).setdefault(file.stem, []).append(stored["map"])
        for way, sites in reports.items():
            mean = np.mean([np.mean(maps, axis=0) for maps in sites.values()], axis=0)
            several = task.maps == "relevance" and len(mean) > 1
            groups: Sequence[tuple[str, Any]] = (
                list(zip(classes, mean, strict=True)) if several
                else [("", mean[0] if task.maps == "relevance" else mean)]
            )  # fmt: skip
            for number, (group, volume) in enumerate(groups, start=1):
                yield GroupMap(
                    task=task.name, way=way, group=group, number=number, sites=tuple(sites),
                    volume=volume.astype(np.float32),
                )  # fmt: skip


def nifti_of(study: Study, found: GroupMap) -> Any:
    """The map on the study's grid, which lies around MNI152's brain if scans were laid on it."""
    spacing_mm = getattr(study.data, "spacing_mm", 1.0)
    return image_of(found.volume, spacing_mm, f"mean group map of {len(found.sites)} sites")
