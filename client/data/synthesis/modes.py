"""What varies between synthetic heads, and which of it a disease shares with the phenotypes.

The generator follows one rule: each phenotype moves regional volumes along one direction and the
brightness of grey matter along another, and the disease is a mixture of the phenotypes' own
directions: of volumes mostly, of brightness wholly. So what a network learns of the phenotypes can
help with the disease. The negative control has a disease of the same size that shares nothing.

Letters in shapes: R regions, J modes, P phenotypes, M voxels near the brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from client.data.synthesis.regions import PAIRS, Floats, special

MODES: Final = 10
# by phenotype, how far a score of 1 moves a head; the norm of a direction is the same for all
EFFECTS: Final = {
    "age": 1.0,
    "sex": 0.95,
    "bmi": 0.9,
    "fluid_intelligence": 0.6,
    "neuroticism": 0.5,
    "handedness": 0.8,
}
DISEASE_COSINE: Final = 0.85  # how much of the disease's volumes is a mixture of phenotypes
# the mixture: old for one's age, heavier, less intelligent, more neurotic
_MIXTURE: Final = {"age": 0.5, "bmi": 0.5, "fluid_intelligence": -0.6, "neuroticism": 0.4}
_DICTIONARY_SEED: Final = 20_250_101  # anatomy is the same for every site and every study seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Directions:
    """Of one kind of change, what a score of 1 and a disease of severity 1 add to each region."""

    phenotypes: Floats  # (P, R), in the order of EFFECTS
    disease: Floats  # (R,)
    disease_apart: Floats  # (R,), of the same norm, which shares nothing with the phenotypes


@dataclass(frozen=True, kw_only=True, slots=True)
class Modes:
    """Directions in the space of regions: of log-scales and of brightness, in units of theirs."""

    dictionary: Floats  # (R, J), of what varies for no known reason
    shape: Directions
    contrast: Directions


def draw_modes(shape_images: Floats, contrast_images: Floats) -> Modes:
    """The modes of all synthetic people.

    The disease apart is orthogonal to the phenotypes twice: as a direction, and as a change of the
    image, where kernels of neighbouring regions overlap and orthogonal directions can look alike.

    shape_images, contrast_images: (R, M), what a log-scale or a brightness of 1 does to an image.
    """
    random = np.random.default_rng(_DICTIONARY_SEED)
    even, odd = (share * random.normal(size=(len(PAIRS), MODES)) for share in (0.85, 0.5))
    dictionary = np.concatenate([even + odd, even - odd])
    dictionary /= dictionary.std(0)
    shape = _mixtures(dictionary, random)
    hippocampus, ventricles = special("hippocampus"), special("ventricle")
    elsewhere = 1 - hippocampus - ventricles
    shape[0] = -0.8 * np.abs(shape[0]) * elsewhere - 1.6 * hippocampus + 2.2 * ventricles
    contrast = _mixtures(dictionary, random)
    own = 0.7 * _mixtures(dictionary, random)[0] - 2 * hippocampus + ventricles
    looks = np.concatenate(
        [
            np.einsum("kr,rm->km", np.concatenate([dictionary.T, shape]), shape_images),
            np.einsum("kr,rm->km", contrast, contrast_images),
        ]
    )

    def apart(shared: Floats, images: Floats) -> Floats:
        alike = np.einsum("rm,km->kr", images, looks)
        return _without(random.normal(size=2 * len(PAIRS)), np.concatenate([shared, alike]))

    return Modes(
        dictionary=dictionary,
        shape=_directions(
            shape, DISEASE_COSINE, own, apart(np.concatenate([dictionary.T, shape]), shape_images)
        ),
        contrast=_directions(contrast, 1.0, own, apart(contrast, contrast_images)),
    )


def _mixtures(dictionary: Floats, random: np.random.Generator) -> Floats:
    """One direction of the dictionary's span for each phenotype (P, R), entries about 1."""
    weights = random.normal(size=(MODES, len(EFFECTS)))
    return np.asarray(np.einsum("rj,jp->pr", dictionary, weights / np.linalg.norm(weights, axis=0)))


def _directions(phenotypes: Floats, cosine: float, own: Floats, apart: Floats) -> Directions:
    """All of one norm: phenotypes (P, R) by their effects, and a disease with `own` (R,) in it."""
    norm = np.sqrt(phenotypes.shape[1])
    units = np.array([_unit(direction) for direction in phenotypes])
    mixed = sum(_MIXTURE.get(name, 0.0) * u for name, u in zip(EFFECTS, units, strict=True))
    disease = cosine * _unit(np.asarray(mixed))
    disease += np.sqrt(1 - cosine**2) * _unit(_without(own, phenotypes))
    return Directions(
        phenotypes=norm * np.array(list(EFFECTS.values()))[:, None] * units,
        disease=norm * disease,
        disease_apart=norm * _unit(apart),
    )


def _without(direction: Floats, shared: Floats) -> Floats:
    """Remove from `direction` (R,) what it has in common with `shared` (K, R)."""
    basis = np.linalg.svd(shared, full_matrices=False)
    rows = basis.Vh[1e-9 * basis.S[0] < basis.S]
    return np.asarray(direction - np.einsum("kr,k->r", rows, np.einsum("kr,r->k", rows, direction)))


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / np.linalg.norm(vector))
