"""How a group map overlaps with what is known to be active, against maps that only look like it.

Chance is the same map moved and mirrored: its blobs are as many and as smooth, and lie elsewhere. A
null of shuffled voxels would call any smooth map a finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.data.anatomy.glass_brain import in_a_path
from common.errors import DataError
from deploy.maps import GroupMap, nifti_of

TRUTH: Final = "state-{}_activation.nii.gz"
_SHARE: Final = 0.05  # of the brain's voxels: the loudest of a map
_HALF: Final = 0.5  # of the largest activation: where a state is active
_MOVED: Final = 999
_PRECISE: Final = 99  # of these, enough for a median


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """One map beside the truth: the Dice coefficient of its loudest twentieth, and precision.

    chance_dice, chance_precision: medians over moved maps. p: how many of these have as large a
    Dice coefficient, (1 + n) / (1 + all).
    """

    task: str
    way: str
    group: str
    dice: float
    chance_dice: float
    precision: float
    chance_precision: float
    p: float


def overlaps(maps: Iterator[GroupMap], study: Any, folder: Path, *, seed: int = 0) -> list[Overlap]:
    """Every map of a state beside `folder`'s file of that state.

    Raises
    ------
    DataError
        If a state has no file there, or one of another grid.
    """
    return [
        _beside(found, _truth(found, study, folder), np.random.default_rng(seed))
        for found in maps
        if found.group
    ]


def _truth(found: GroupMap, study: Any, folder: Path) -> NDArray[np.float64]:
    """Absolute activation of a state on the map's own grid."""
    import nibabel

    path = folder / TRUTH.format(in_a_path(found.group))
    if not path.exists():
        raise DataError(f"{path} is missing: what is active in {found.group} is not known")
    image: Any = nibabel.load(path)
    ours = nifti_of(study, found)
    if image.shape != ours.shape or not np.allclose(image.affine, ours.affine, atol=0.1):
        raise DataError(f"{path} lies on another grid than the map; the study's grid is needed")
    active: NDArray[np.float64] = np.abs(np.asarray(image.get_fdata()))
    return active


def _beside(found: GroupMap, truth: NDArray[np.float64], chance: np.random.Generator) -> Overlap:
    inside = found.volume != 0  # a map is 0 where every sample is: outside the brain
    active = truth[inside] >= _HALF * truth.max()
    if not active.any():  # of a network that says nothing, or looks nowhere near
        return Overlap(
            task=found.task, way=found.way, group=found.group, dice=0.0, chance_dice=0.0,
            precision=0.0, chance_precision=0.0, p=1.0,
        )  # fmt: skip
    moved = [volume[inside] for volume in _moved(found.volume, chance)]
    dice, by_chance = _dice(found.volume[inside], active), [_dice(one, active) for one in moved]
    precisions = [_precision(one, active) for one in moved[:_PRECISE]]
    return Overlap(
        task=found.task, way=found.way, group=found.group, dice=dice,
        chance_dice=float(np.median(by_chance)),
        precision=_precision(found.volume[inside], active),
        chance_precision=float(np.median(precisions)),
        p=float((1 + (np.array(by_chance) >= dice).sum()) / (1 + len(by_chance))),
    )  # fmt: skip


def _moved(
    volume: NDArray[np.float32], chance: np.random.Generator
) -> Iterator[NDArray[np.float32]]:
    """The map mirrored along some axes and moved by a quarter of the grid or more, round."""
    shape = volume.shape
    for _ in range(_MOVED):
        turned = np.flip(volume, tuple(axis for axis in range(3) if chance.random() < 0.5))
        steps = tuple(int(chance.integers(size // 4, size - size // 4 + 1)) for size in shape)
        yield np.roll(turned, steps, axis=(0, 1, 2))


def _dice(values: NDArray[np.float32], active: NDArray[np.bool_]) -> float:
    """Of the loudest twentieth with what is active."""
    number = max(1, round(_SHARE * len(values)))
    loudest = np.argpartition(values, -number)[-number:]
    return float(2 * active[loudest].sum() / (number + active.sum()))


def _precision(values: NDArray[np.float32], active: NDArray[np.bool_]) -> float:
    """Average precision of the whole map."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(active, values))
