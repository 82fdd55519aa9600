"""Draws functional runs of people whose brains answer twenty states with the same thirty blobs.

Sixteen states are for pretraining and four for a task of their own: different signed combinations
of five blobs each, of one dictionary, so that what the sixteen teach can help with the four. People
differ in where their blobs lie, how wide and how strong they are; blocks in how strongly they are
answered; hospitals in their scanner.

Letters in shapes: S states, K blobs, V voxels of the brain, T volumes, X Y Z the grid (RAS). Sums
are einsum, not @: BLAS rounds differently with another number of threads.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal
from scipy.cluster.vq import kmeans2

from client.data.synthesis.anatomy import Anatomy

SIGNS: Final = tuple(f"sign{n:02d}" for n in range(1, 17))
MEMORIES: Final = tuple(f"memory{n}" for n in range(1, 5))
STATES: Final = (*SIGNS, *MEMORIES)
TASKS: Final = {"signs": (SIGNS, 2), "memory": (MEMORIES, 6)}  # states, and blocks of each

_BLOBS: Final = 30
_OF_A_STATE: Final = 5
_WIDTH_MM: Final = 11.0
_DICTIONARY_SEED: Final = 20_250_102  # what a state is holds for every site and every study seed
_LEAD_S, _BLOCK_S, _REST_S, _TAIL_S = 8.0, 10.0, 4.0, 12.0
_STEP_S: Final = 0.5  # in which responses are drawn
_NOISE: Final = 0.8  # deviation of a voxel, in percent; a blob's peak is about one
_AUTOREGRESSION: Final = 0.4
_BASE: Final = 4000  # scanner units of grey matter

Floats = NDArray[np.float64]
TaskName = Literal["signs", "memory"]


class Block(NamedTuple):
    """From when to when a person was in a state."""

    onset_s: float
    duration_s: float
    state: str


class Scanner(NamedTuple):
    """What makes one hospital's runs unlike another's."""

    repetition_time_s: float = 2.0
    noise: float = 1.0
    blur_voxels: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ward:
    """One hospital: its name and the study's seed, and how far its scanner may be another."""

    name: str
    seed: int = 0
    strength: float = 1.0

    def draws(self, purpose: str, *numbers: int) -> np.random.Generator:
        """Chance for one purpose, whatever else is drawn."""
        words = f"{self.seed}/{self.name}/{purpose}/{'/'.join(map(str, numbers))}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(words.encode()).digest()[:16]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Blobs:
    """Centres (K, 3) in MNI mm, widths (K,) in mm, and how strongly each answers, (S, K)."""

    centres_mm: Floats
    widths_mm: Floats
    weights: Floats

    def maps(self, world_mm: Floats) -> Floats:
        """(S, V): what each state adds at places (V, 3), in percent."""
        squared = ((world_mm - self.centres_mm[:, None]) ** 2).sum(-1)
        kernels = np.exp(-squared / (2 * self.widths_mm[:, None] ** 2))
        return np.asarray(np.einsum("sk,kv->sv", self.weights, kernels))


def scanner_of(ward: Ward) -> Scanner:
    """The hospital's scanner; at strength 0 all have the same."""
    random, strength = ward.draws("scanner"), ward.strength
    return Scanner(
        repetition_time_s=float(random.choice((1.5, 2.0, 2.5))) if strength else 2.0,
        noise=float(np.exp(random.normal() * 0.2 * strength)),
        blur_voxels=abs(random.normal()) * 0.3 * strength,
    )


def world_of(anatomy: Anatomy) -> Floats:
    """Where the brain's voxels lie: (V, 3) MNI mm."""
    return np.asarray(np.argwhere(anatomy.brain) @ anatomy.affine[:3, :3].T + anatomy.affine[:3, 3])


def activation(anatomy: Anatomy) -> Floats:
    """The true answer of an average brain to each state: (S, X, Y, Z) percent."""
    found = np.zeros((len(STATES), *anatomy.shape))
    found[:, anatomy.brain] = dictionary().maps(world_of(anatomy))
    return found


@lru_cache(maxsize=1)
def dictionary() -> Blobs:
    """The blobs of an average brain, and what the twenty states make of them."""
    from client.data.synthesis.anatomy import fine_tissues

    random = np.random.default_rng(_DICTIONARY_SEED)
    tissues, affine = fine_tissues()
    every = 6  # mm: the grid of a run plays no part
    grey = np.argwhere(tissues[0, ::every, ::every, ::every] > 0.5) * every
    world = grey @ affine[:3, :3].T + affine[:3, 3]
    centres = kmeans2(world, _BLOBS, minit="++", iter=50, seed=_DICTIONARY_SEED)[0]
    weights = np.zeros((len(STATES), _BLOBS))
    for row in weights:
        chosen = random.choice(_BLOBS, _OF_A_STATE, replace=False)
        signs = np.where(random.random(_OF_A_STATE) < 0.25, -1, 1)
        row[chosen] = signs * random.uniform(0.7, 1.3, _OF_A_STATE)
    return Blobs(centres_mm=centres, widths_mm=np.full(_BLOBS, _WIDTH_MM), weights=weights)


def person_of(ward: Ward, person: int) -> Blobs:
    """One person's own blobs."""
    random, average = ward.draws("person", person), dictionary()
    return Blobs(
        centres_mm=average.centres_mm + random.normal(0, 5, size=(_BLOBS, 3)),
        widths_mm=average.widths_mm * np.exp(random.normal(0, 0.15, _BLOBS)),
        weights=average.weights * np.exp(random.normal(0, 0.35, _BLOBS)),
    )


def blocks_of(ward: Ward, person: int, task: TaskName) -> list[Block]:
    """The order of a person's blocks in one task."""
    states, times = TASKS[task]
    order = ward.draws(f"{task} blocks", person).permutation(np.repeat(states, times))
    step_s = _BLOCK_S + _REST_S
    return [Block(_LEAD_S + n * step_s, _BLOCK_S, str(state)) for n, state in enumerate(order)]


def draw_run(anatomy: Anatomy, ward: Ward, person: int, task: TaskName) -> NDArray[np.int16]:
    """A person's run of one task: (X, Y, Z, T) in scanner units, 0 outside the brain."""
    scanner, random = scanner_of(ward), ward.draws(f"{task} run", person)
    blocks = blocks_of(ward, person, task)
    answers_TS = _answers(blocks, scanner, random)
    volumes = len(answers_TS)
    brain = anatomy.brain
    change = np.zeros((volumes, *anatomy.shape))
    maps_SV = person_of(ward, person).maps(world_of(anatomy))
    change[:, brain] = np.einsum("ts,sv->tv", answers_TS, maps_SV)
    change += _noise(change.shape, scanner, random)
    if scanner.blur_voxels:
        change = ndimage.gaussian_filter(change, (0, *[scanner.blur_voxels] * 3))
    drift = random.normal() * np.linspace(-1, 1, volumes) + _whole(volumes, random)
    change += drift[:, None, None, None]
    base = _BASE * (0.6 + 0.4 * anatomy.tissues[0])
    units = np.rint(base * (1 + change / 100)) * brain
    return np.moveaxis(np.clip(units, 0, 32_767).astype(np.int16), 0, -1)


def _answers(blocks: list[Block], scanner: Scanner, random: np.random.Generator) -> Floats:
    """(T, S): how strongly each state shows in each volume, after the blood has answered."""
    from nilearn.glm.first_level import glover_hrf

    end_s = blocks[-1].onset_s + blocks[-1].duration_s + _TAIL_S
    fine = np.zeros((int(end_s / _STEP_S) + 1, len(STATES)))
    for block in blocks:
        first, last = (
            round(at / _STEP_S) for at in (block.onset_s, block.onset_s + block.duration_s)
        )
        fine[first:last, STATES.index(block.state)] = 1 + 0.4 * random.normal()
    response = glover_hrf(_STEP_S, oversampling=1)
    told = signal.lfilter(response / response.sum(), 1.0, fine, axis=0)
    middles = np.arange(0.5, end_s / scanner.repetition_time_s - 0.5) * scanner.repetition_time_s
    return np.asarray(told[(middles / _STEP_S).astype(int)])


def _noise(shape: tuple[int, ...], scanner: Scanner, random: np.random.Generator) -> Floats:
    """(T, X, Y, Z): smooth in space, each volume's partly that of the last."""
    plain = random.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(plain, (0, 1, 1, 1))
    smooth *= np.float32(1 / smooth.std())
    kept = signal.lfilter([(1 - _AUTOREGRESSION**2) ** 0.5], [1, -_AUTOREGRESSION], smooth, axis=0)
    return np.asarray(_NOISE * scanner.noise * kept)


def _whole(volumes: int, random: np.random.Generator) -> Floats:
    """What rises and falls in all voxels at once: breath and blood."""
    return np.asarray(0.5 * signal.lfilter([1.0], [1, -0.6], random.normal(size=volumes)))
