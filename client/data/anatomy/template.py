"""The MNI152 head that scans are laid on: its brain and tissues, as nilearn ships them.

ICBM 2009a, symmetric, skull-stripped (Fonov et al. 2011), 1 mm, RAS. Being symmetric it says
nothing about left and right.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray

from client.data.anatomy import grid

_FILE: Final = "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The template at one spacing: voxels (X, Y, Z), its brain (X, Y, Z), affine to world mm."""

    voxels: NDArray[np.float32]
    brain: NDArray[np.bool_]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels to the right, anterior, superior."""
        x, y, z = self.brain.shape
        return x, y, z


def read_map(name: Literal["t1", "gm", "wm"]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The template's image or one of its tissue maps (0 to 1), as it lies on disk: RAS, 1 mm."""
    # found without importing nilearn, which takes 1.9 s
    spec = find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("nilearn is not installed; its MNI152 template is needed")
    path = Path(spec.submodule_search_locations[0]) / _FILE.format(name)
    with gzip.open(path) as stream:
        image = nibabel.Nifti1Image.from_stream(stream)
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    return voxels, np.asarray(image.affine, dtype=np.float64)


@cache
def template(spacing_mm: float) -> Template:
    """The template shrunk to a spacing; whatever of it is not 0 is brain."""
    voxels, affine = read_map("t1")
    brain = grid.shrunk((voxels > 0).astype(np.float32), affine, spacing_mm)[0] > 0.5
    small, moved = grid.shrunk(voxels, affine, spacing_mm)
    return Template(voxels=small, brain=brain, affine=moved)


@cache
def tissue(name: Literal["gm", "wm"], spacing_mm: float) -> NDArray[np.float32]:
    """Share of grey or white matter on the grid of `template(spacing_mm)`."""
    voxels, affine = read_map(name)
    share = grid.shrunk(voxels, affine, spacing_mm)[0]
    scaled: NDArray[np.float32] = share / np.float32(voxels.max())
    return scaled
