"""Turn, zoom and move a volume a little, in one resampling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from common.seams import Sample
from common.settings import Table


class Affine:
    """(X, Y, Z) to the same volume, turned about its middle; what comes in from outside is 0.

    Interpolation is linear: at its edge the head fades into the 0 around it over one voxel. Voxels
    are taken as cubes.
    """

    class Settings(Table):
        """Keys of `[[augmentation]]`."""

        name: Literal["affine"] = Field(description="Turn, zoom and move a volume.")
        degrees: Annotated[float, Field(ge=0, le=180)] = Field(
            10.0, description="Largest angle about each axis.", examples=[10.0]
        )
        zoom: Annotated[float, Field(ge=0, le=0.5)] = Field(
            0.1, description="The zoom lies within 1 plus or minus this.", examples=[0.1]
        )
        voxels: Annotated[float, Field(ge=0, le=64)] = Field(
            2.0, description="Largest way along each axis; whole or not.", examples=[2.0]
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            raise ValueError(f"name is affine, which turns volumes; a sample has {list(shape)}")
        if settings.voxels >= min(shape):
            raise ValueError(f"voxels is {settings.voxels:g}; a sample has {list(shape)}")
        self._settings = settings

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        settings = self._settings
        angles = generator.uniform(-settings.degrees, settings.degrees, 3)
        zoom = 1 + generator.uniform(-settings.zoom, settings.zoom)
        way = generator.uniform(-settings.voxels, settings.voxels, 3)
        return transformed(sample, angles, zoom, way)


def transformed(sample: Sample, degrees: ArrayLike, zoom: float, voxels: ArrayLike) -> Sample:
    """The volume turned about the axes 0, 1, 2 in turn, zoomed about its middle, then moved.

    What was at p is then at zoom R (p - middle) + middle + voxels.
    """
    import SimpleITK
    from scipy.spatial.transform import Rotation

    sitk: Any = SimpleITK
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    back = turn.T / zoom  # from a place in the result to where it came from
    middle = (np.array(sample.shape) - 1) / 2
    origin = middle - back @ (middle + np.asarray(voxels))
    # ITK counts axes from the last
    where = sitk.AffineTransform(back[::-1, ::-1].ravel().tolist(), origin[::-1].tolist())
    # it takes 10 ms for 64 x 64 x 64; SciPy 45, MONAI 22, and torch's threads would keep the
    # cores from training
    one = sitk.ResampleImageFilter()
    one.SetNumberOfThreads(1)
    one.SetInterpolator(sitk.sitkLinear)
    one.SetTransform(where)
    image = sitk.GetImageFromArray(sample)
    one.SetReferenceImage(image)
    made: Sample = sitk.GetArrayFromImage(one.Execute(image))
    return made
