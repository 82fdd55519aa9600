"""Where a brain lies in MNI152: an affine transform, found by mutual information.

SimpleITK (Mattes mutual information of every voxel near the template's brain, Lowekamp et al. 2013;
regular steps of gradient descent) at 8 and 4 mm, in one thread: the same bits whatever the machine
does beside. Brain meets brain, never a skull a brain: with a whole head against a template without
skull, 4 of 12 scans of one real site ended at twice their volume.

Always affine, twelve degrees of freedom, so that one overlap judges them all; `rigid` is the
rotation and shift nearest to it (as HCP's aff2rigid), and keeps the head's own size.

Frames: world mm of the template and of the scan, RAS+. Letters: A (3, 3) the linear part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.data.anatomy import grid, orientation
from client.data.anatomy.image import image_of, one_thread
from client.data.anatomy.template import Template, template
from common.errors import ScanError

LEAST_OVERLAP: Final = 0.9  # Dice with the template's brain
# correlation with the template inside its brain: 0.14 to 0.66 in 98 real scans, -0.6 in a T2, 0.02
# to -0.1 in phantoms
LEAST_LIKENESS: Final = 0.1
_SCALES: Final = (0.5, 1.5)  # along any direction; 98 real heads: 0.75 to 1.0
_AGREES_MM: Final = 20.0  # middles nearer than this: the header's placing is where to start
_PITCHES: Final = (0.0, -0.35, 0.35)  # radians; how heads lie in coils
_SUSPECTS: Final = 8  # of the 23 other ways to lie, as many as fit best are tried out
_NEAR_MM: Final = 8.0  # the outside that is compared as well, or the template could shrink freely
_BINS: Final = {8.0: 32, 4.0: 64}  # by spacing: 64 of few voxels are noise, 32 of many cost 0.5 mm
_STEPS: Final = 100

Affine = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """From the template's world mm to the scan's: (4, 4).

    overlap: Dice of the two brains. likeness: correlation of their voxels, inside.
    """

    affine: Affine
    overlap: float
    likeness: float

    @property
    def rigid(self) -> Affine:
        """The rotation and shift nearest to it; the middle of the brain goes to the same place."""
        turn = _turn(self.affine)
        middle = _middle(template(4.0).brain, template(4.0).affine)
        moved = np.eye(4)
        moved[:3, :3] = turn
        moved[:3, 3] = self.affine[:3, :3] @ middle + self.affine[:3, 3] - turn @ middle
        return moved

    @property
    def figures(self) -> dict[str, float]:
        """How far the brain had to go: shift of its middle, turn, and the template's size over its.

        >>> half = Placing(affine=np.diag([0.5, 0.5, 0.5, 1.0]), overlap=1.0, likeness=1.0)
        >>> round(half.figures["scaling"], 3)
        2.0
        """
        middle = _middle(template(4.0).brain, template(4.0).affine)
        shift = self.affine[:3, :3] @ middle + self.affine[:3, 3] - middle
        turned = np.clip((np.trace(_turn(self.affine)) - 1) / 2, -1, 1)
        return {
            "overlap": self.overlap,
            "likeness": self.likeness,
            "translation_mm": float(np.linalg.norm(shift)),
            "rotation_degrees": float(np.degrees(np.arccos(turned))),
            "scaling": float(np.linalg.det(self.affine[:3, :3]) ** (-1 / 3)),
        }


def register(voxels: NDArray[np.float32], affine: Affine, brain: NDArray[np.bool_]) -> Placing:
    """Lay a brain on the template.

    Parameters
    ----------
    voxels : (X, Y, Z), axes near R, A, S, with their affine to world mm
    brain : (X, Y, Z), what of it is brain

    Raises
    ------
    ScanError
        If it overlaps with the template's brain by less than `LEAST_OVERLAP`, was squeezed or
        stretched as no brain is, or looks turned once it lies there.
    """
    if not brain.any():
        raise ScanError("no brain was found in it; look at it, or give a brain mask (data.brain)")
    bright = np.percentile(voxels[brain], 99.5)
    alone = np.where(brain, np.clip(voxels, 0, bright), 0).astype(np.float32)
    try:
        with one_thread():
            found = _found(alone, affine, brain)
    except RuntimeError:  # ITK's: nothing of the one lies on the other
        raise ScanError("it cannot be laid on the MNI152 brain; look at it") from None
    placing = Placing(
        affine=found,
        overlap=overlap(brain, affine, found),
        likeness=_likeness(alone, affine, found),
    )
    _check(placing)
    return placing


def overlap(brain: NDArray[np.bool_], affine: Affine, found: Affine) -> float:
    """Dice coefficient of a brain and the template's, on the template's grid at 4 mm."""
    mni = template(4.0)
    placed = grid.resampled(brain.astype(np.float32), affine, found @ mni.affine, mni.shape) > 0.5
    return float(2 * (placed & mni.brain).sum() / (placed.sum() + mni.brain.sum()))


def _likeness(alone: NDArray[np.float32], affine: Affine, found: Affine) -> float:
    """Correlation with the template, one cm and more inside its brain: edges are alike anyway."""
    mni = template(4.0)
    inner = ndimage.binary_erosion(mni.brain, iterations=2)
    placed = grid.resampled(alone, affine, found @ mni.affine, mni.shape)[inner]
    spread = float(placed.std())
    return float(np.corrcoef(placed, mni.voxels[inner])[0, 1]) if spread > 0 else 0.0


def _check(placing: Placing) -> None:
    if placing.overlap < LEAST_OVERLAP:
        raise ScanError(
            f"its brain overlaps with that of MNI152 by {placing.overlap:.2f} (Dice) once laid on "
            f"it; {LEAST_OVERLAP:g} is needed: look at it, or give a brain mask (data.brain)"
        )
    if placing.likeness < LEAST_LIKENESS:
        raise ScanError(
            f"laid on MNI152 its brain correlates with it by {placing.likeness:.2f}; at least "
            f"{LEAST_LIKENESS:g} is needed: is it T1-weighted?"
        )
    sizes = np.linalg.svd(placing.affine[:3, :3], compute_uv=False)
    if not _SCALES[0] <= sizes.min() <= sizes.max() <= _SCALES[1]:
        raise ScanError(
            f"its brain is {sizes.min():.2f} to {sizes.max():.2f} times as large as that of "
            f"MNI152; {_SCALES[0]:g} to {_SCALES[1]:g} is a brain"
        )


def _found(alone: NDArray[np.float32], affine: Affine, brain: NDArray[np.bool_]) -> Affine:
    """Rigid from the best start, then similar, then affine."""
    import SimpleITK

    coarse, fine = (
        _Pair(moving=image_of(*grid.shrunk(alone, affine, mm)), fixed=template(mm))
        for mm in (8.0, 4.0)
    )
    similar = _as(SimpleITK.Similarity3DTransform(), _started(coarse, _middle(brain, affine)))
    # of 1 mm the first step, which goes along the steepest axis, may halve the brain's size
    coarse.improve(similar, step=0.2, least=0.02)
    free = _as(SimpleITK.AffineTransform(3), similar)
    fine.improve(free, step=0.1, least=0.01)
    return _matrix(free)


def _started(coarse: _Pair, middle: NDArray[np.float64]) -> Any:
    """The best rigid transform as the header says, tilted as heads are.

    Raises
    ------
    ScanError
        If another way to lie fits better than any of these.
    """
    away = middle - np.asarray(grid.MNI_CENTRE_MM)
    near = np.zeros(3) if np.linalg.norm(away) < _AGREES_MM else away
    plain, *others = orientation.turns()
    tried: list[tuple[float, int, Any]] = []
    for pitch in _PITCHES:
        start = _rigid(near, _pitched(pitch))
        tried.append((coarse.improve(start, step=4.0, least=0.1), len(tried), start))
    fit, _, best = min(tried)
    turned = [(turn, _rigid(away, turn.rotation)) for turn in others]
    turned.sort(key=lambda one: coarse.metric(one[1]))
    for turn, start in turned[:_SUSPECTS]:
        if coarse.improve(start, step=4.0, least=0.1) < fit:
            raise ScanError(
                f"its axes seem to be {turn} where its header says {plain}: so it fits MNI152 "
                "better; correct the header's orientation"
            )
    return best


def _rigid(shift: NDArray[np.float64], turn: NDArray[np.float64]) -> Any:
    import SimpleITK

    start = SimpleITK.VersorRigid3DTransform()
    start.SetCenter(grid.MNI_CENTRE_MM)
    start.SetMatrix(turn.ravel().tolist())
    start.SetTranslation(shift.tolist())
    return start


def _pitched(angle: float) -> NDArray[np.float64]:
    """A nod by `angle` radians, (3, 3)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A scan and the template at one spacing."""

    moving: Any
    fixed: Template

    def metric(self, transform: Any) -> float:
        """How well they agree under a transform; lower is better."""
        method = self._method(transform)
        return float(method.MetricEvaluate(self._fixed(), self.moving))

    def improve(self, transform: Any, *, step: float, least: float) -> float:
        """Change a transform in place; the metric reached."""
        method = self._method(transform)
        method.SetOptimizerAsRegularStepGradientDescent(step, least, _STEPS, relaxationFactor=0.6)
        method.SetOptimizerScalesFromPhysicalShift()
        method.Execute(self._fixed(), self.moving)
        return float(method.GetMetricValue())

    def _fixed(self) -> Any:
        return image_of(self.fixed.voxels, self.fixed.affine)

    def _method(self, transform: Any) -> Any:
        import SimpleITK

        spacing_mm = float(self.fixed.affine[0, 0])
        reach = max(1, round(_NEAR_MM / spacing_mm))
        near = ndimage.binary_dilation(self.fixed.brain, iterations=reach)
        method = SimpleITK.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(_BINS[spacing_mm])
        method.SetMetricFixedMask(image_of(near.astype(np.uint8), self.fixed.affine))
        method.SetMetricSamplingStrategy(method.NONE)
        method.SetInterpolator(SimpleITK.sitkLinear)
        method.SetInitialTransform(transform, inPlace=True)
        return method


def _as(transform: Any, other: Any) -> Any:
    """A more general transform that does what another one does."""
    transform.SetCenter(other.GetCenter())
    transform.SetMatrix(other.GetMatrix())
    transform.SetTranslation(other.GetTranslation())
    return transform


def _matrix(transform: Any) -> Affine:
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    found = np.eye(4)
    found[:3, :3] = linear
    found[:3, 3] = np.array(transform.GetTranslation()) + centre - linear @ centre
    return found


def _turn(affine: Affine) -> NDArray[np.float64]:
    """The rotation nearest to A: of its polar decomposition."""
    left, _, right = np.linalg.svd(affine[:3, :3])
    turn: NDArray[np.float64] = left @ right
    return turn


def _middle(mask: NDArray[np.bool_], affine: Affine) -> NDArray[np.float64]:
    """Centre of mass of a mask, world mm."""
    index = np.array([axis.mean() for axis in np.nonzero(mask)])
    middle: NDArray[np.float64] = affine[:3, :3] @ index + affine[:3, 3]
    return middle
