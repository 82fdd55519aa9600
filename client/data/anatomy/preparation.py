"""A head as acquired becomes a sample: evened, laid on MNI152, stripped, resampled once, scaled.

Whatever the settings, voxels are interpolated once: transforms are multiplied first. Each step that
a study does not ask for is not taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.data.anatomy import grid, orientation
from client.data.anatomy.background import BRIGHT, head_of
from client.data.anatomy.bias import evened
from client.data.anatomy.brain import brain_of
from client.data.anatomy.quality import contrast_to_noise, joint_variation
from client.data.anatomy.registration import Placing, register
from client.data.anatomy.template import template
from client.data.reader import Prepared
from common.errors import ScanError
from common.kinds.t1w import T1w

_LEAST_ML: Final = 150.0  # foreground; the smallest adult brains have about 900 ml
_LEAST_SHARE: Final = 0.5  # of the foreground that lies inside the study's grid
_LEAST_INSIDE: Final = 0.5  # of a site's mask that lies in the head
_WORKING_MM: Final = 2.0  # brains are looked for and laid on at this spacing, whatever the study's

Affine = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A scan shrunk to about a spacing: voxels (X, Y, Z), affine to world mm, its head or brain.

    plain, placed_at: the same as acquired. lit: a note if its background is not dark.
    """

    plain: NDArray[np.float32]
    placed_at: Affine
    voxels: NDArray[np.float32]
    affine: Affine
    head: Mask
    lit: str

    @classmethod
    def seen(cls, plain: NDArray[np.float32], placed_at: Affine, spacing_mm: float) -> Scan:
        """Shrink a scan (X, Y, Z), axes near R, A, S, and tell it from its background."""
        voxels, affine = grid.shrunk(plain, placed_at, spacing_mm)
        head, lit = head_of(plain, voxels, placed_at, spacing_mm)
        if lit:  # what follows takes a background to be dark
            voxels = np.where(head, voxels, voxels.min())
        return cls(
            plain=plain, placed_at=placed_at, voxels=voxels, affine=affine, head=head, lit=lit
        )

    def ml(self, mask: Mask) -> float:
        """Volume of a mask of this scan's."""
        return float(mask.sum() * abs(np.linalg.det(self.affine[:3, :3])) / 1000)


def prepare_scan(
    study: T1w.Study, scan: Scan, own_mask: tuple[Mask, Affine] | None = None
) -> Prepared:
    """The sample of a scan, (1, X, Y, Z) float16, with notes and figures on its quality.

    own_mask: the site's brain mask (X, Y, Z) and its affine, where the study asks for it.

    Raises
    ------
    ScanError
        With what was found and what was needed.
    """
    if scan.ml(scan.head) < _LEAST_ML:
        raise ScanError(
            f"its foreground has {scan.ml(scan.head):.0f} ml; a head or brain is needed"
        )
    # a negative would fit a template as well as anything
    doubt = _doubt(scan.voxels, scan.affine) if scan.lit != BRIGHT else ()
    voxels = scan.voxels
    if study.bias_correction:
        voxels = evened(voxels, scan.affine, scan.head)
    kept = scan.head if own_mask is None else _laid_on(*own_mask, scan)
    placing = None if study.registration == "none" else _registered(scan, study, own_mask)
    moved = _moved(study, placing)
    target = moved @ _target(study, scan)
    placed = grid.resampled(voxels, scan.affine, target, study.shape)
    held = grid.resampled(kept.astype(np.float32), scan.affine, target, study.shape) > 0.5
    volume_ml = scan.ml(kept) / float(np.linalg.det(moved[:3, :3]))  # on the study's grid
    outside = _outside(held, study, volume_ml)
    inside = held
    if placing is not None and study.brain == "template":
        inside = held & _template_brain(placing, target, study.shape)
    sample = grid.normalised(placed, inside, study.intensity).astype(np.float16)
    figures = {
        "foreground_ml": scan.ml(scan.head),
        "outside_grid": outside,
        "contrast_to_noise": contrast_to_noise(placed, inside),
    }
    if own_mask is not None:
        figures["brain_ml"] = scan.ml(kept)
    if placing is not None:
        figures |= placing.figures
        varied = joint_variation(voxels, scan.affine, placing.affine)
        figures |= {} if varied is None else {"joint_variation": varied}
    notes = (*((scan.lit,) if scan.lit else ()), *doubt)
    return Prepared(samples=sample[None], notes=notes, quality=figures)


def _doubt(voxels: NDArray[np.float32], affine: Affine) -> tuple[str, ...]:
    """Refuse a scan that lies otherwise than its header says; a note where it only may."""
    turn, by = orientation.better_turn(voxels, affine)
    if by <= orientation.PERHAPS:
        return ()
    found = f"its axes seem to be {turn} where its header says RAS (fit better by {by:.2f})"
    if by > orientation.CLEARLY:
        raise ScanError(f"{found}; correct the header's orientation")
    return (f"{found}; look at it",)


def _registered(scan: Scan, study: T1w.Study, own_mask: tuple[Mask, Affine] | None) -> Placing:
    """Where the scan lies in MNI152, by its own mask or by what seems to be its brain."""
    near = scan
    if study.spacing_mm != _WORKING_MM:
        near = Scan.seen(scan.plain, scan.placed_at, _WORKING_MM)
    if own_mask is not None:
        brain = _laid_on(*own_mask, near)
    else:
        brain = brain_of(near.voxels, near.affine, near.head)
    return register(near.voxels, near.affine, brain)


def _laid_on(mask: Mask, affine: Affine, scan: Scan) -> Mask:
    """A site's mask on a scan's own voxels, by both headers.

    Raises
    ------
    ScanError
        If most of it lies outside the head.
    """
    step = float(np.linalg.norm(scan.affine[:3, :3], axis=0).min())
    small, moved = grid.shrunk(mask.astype(np.float32), affine, step)
    x, y, z = scan.head.shape
    brain = grid.resampled(small, moved, scan.affine, (x, y, z)) > 0.5
    whole_ml = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    inside_ml = scan.ml(brain & scan.head)
    if inside_ml < _LEAST_INSIDE * whole_ml:
        raise ScanError(
            f"only {inside_ml:.0f} ml of its brain mask of {whole_ml:.0f} ml lie in the head; is "
            "it this scan's, in this scan's space?"
        )
    return brain


def _moved(study: T1w.Study, placing: Placing | None) -> Affine:
    """From the study's world mm to the scan's: (4, 4)."""
    if placing is None:
        return np.eye(4)
    return placing.affine if study.registration == "affine" else placing.rigid


def _target(study: T1w.Study, scan: Scan) -> Affine:
    """The study's grid: around the MNI152 brain, or around this head."""
    at_centre = study.align == "centre"
    centre = grid.head_centre(scan.head, scan.affine) if at_centre else grid.MNI_CENTRE_MM
    return grid.grid_affine(study.shape, study.spacing_mm, centre)


def _template_brain(placing: Placing, target: Affine, shape: tuple[int, int, int]) -> Mask:
    """The template's brain, where the scan's has come to lie on the grid."""
    mni = template(_WORKING_MM)
    back = np.linalg.inv(placing.affine) @ target  # grid index -> the template's world mm
    return grid.resampled(mni.brain.astype(np.float32), mni.affine, back, shape) > 0.5


def _outside(held: Mask, study: T1w.Study, volume_ml: float) -> float:
    """Share of a scan's foreground or brain that the study's grid misses.

    Raises
    ------
    ScanError
        If it is most of it.
    """
    placed_ml = float(held.sum()) * study.spacing_mm**3 / 1000
    room_ml = float(np.prod(study.shape)) * study.spacing_mm**3 / 1000
    if placed_ml < _LEAST_SHARE * min(volume_ml, room_ml):
        remedy = '; a study of scans as acquired needs align = "centre"'
        raise ScanError(
            f"only {placed_ml:.0f} ml of its foreground of {volume_ml:.0f} ml lie in the study's "
            f"grid{remedy if study.align == 'world' and study.registration == 'none' else ''}"
        )
    return max(0.0, 1 - placed_ml / volume_ml)
