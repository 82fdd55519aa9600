"""Kind `synthetic-t1w`: heads of people who never were, rendered when they are asked for."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from common.kinds.t1w import Extent
from common.seams import Layout
from common.settings import Table

FIELD_OF_VIEW_MM: Final = (160, 192, 160)  # holds the MNI brain with 7 mm or more to spare
_LEAST: Final = 0.9  # of it, along each axis


class SyntheticT1w:
    """One volume a head, as `t1w` has it: (X, Y, Z) float16, axes R, A, S, 0 outside the head.

    Age, sex, volume of the lateral ventricles and of the brain are known of each without a reader:
    what the 100,000 brains of Pinaya et al. (2022) were conditioned on.
    """

    dtype: ClassVar[str] = "float16"
    targets: ClassVar[dict[str, dict[str, Any]]] = {
        "age": {
            "kind": "regression", "unit": "years", "centre": 50.0, "scale": 18.0, "low": 0.0,
            "high": 120.0,
        },
        "sex": {"kind": "binary", "classes": ["female", "male"], "weight": 0.5},
        "ventricle_volume": {"kind": "regression", "unit": "ml", "centre": 17.0, "scale": 3.5},
        "brain_volume": {"kind": "regression", "unit": "ml", "centre": 1550.0, "scale": 200.0},
    }  # fmt: skip

    class Study(Table):
        """The grid, the intensities and the scanners; the same at every site."""

        kind: Literal["synthetic-t1w"] = Field(description="Rendered T1-weighted scans.")
        shape: tuple[Extent, Extent, Extent] = Field(
            description="Voxels to the right, anterior, superior.", examples=[(48, 48, 48)]
        )
        spacing_mm: Annotated[float, Field(ge=2, le=16)] = Field(
            description="Edge of a voxel in mm.", examples=[4.0]
        )
        align: Literal["world", "centre"] = Field(
            "centre",
            description="As the study of real scans that will follow has it: the grid lies around "
            "the MNI152 brain, or around the middle of each head.",
            examples=["centre"],
        )
        intensity: Literal["zscore", "mean"] = Field(
            "zscore",
            description="Inside the head: mean 0 and deviation 1, or mean 1.",
            examples=["zscore"],
        )
        strength: Annotated[float, Field(ge=0, le=5)] = Field(
            1.0,
            description="Spread of contrast, shading, blur and noise between heads, each of which "
            "has a scanner of its own: 0 none, 1 usual, 2 hard.",
            examples=[1.0],
        )

    class Site(Table):
        """Which heads a site renders; the same seed is the same people."""

        kind: Literal["synthetic-t1w"] = Field(description="Rendered T1-weighted scans.")
        seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
            description="Which people; another at each site.", examples=[1]
        )
        people: Annotated[int, Field(ge=1, le=200_000)] = Field(
            description="How many, a scan of each.", examples=[1000]
        )

    @staticmethod
    def shape(study: SyntheticT1w.Study) -> tuple[int, ...]:
        """(X, Y, Z) voxels.

        Raises
        ------
        ValueError
            If the grid is too small for the brain.
        """
        check_grid(study.shape, study.spacing_mm)
        return study.shape

    @staticmethod
    def layout(study: SyntheticT1w.Study) -> Layout:
        """A volume, axes R, A, S."""
        return "volume"


def check_grid(shape: tuple[int, int, int], spacing_mm: float) -> None:
    """Refuse a grid that the brain does not fit in.

    Raises
    ------
    ValueError
        With the voxels that are needed.
    """
    extents = zip(shape, FIELD_OF_VIEW_MM, strict=True)
    if any(n * spacing_mm < _LEAST * extent for n, extent in extents):
        needed = [-int(-_LEAST * extent // spacing_mm) for extent in FIELD_OF_VIEW_MM]
        raise ValueError(
            f"shape is {list(shape)}; at {spacing_mm:g} mm the brain needs {needed} or more"
        )
