"""The people and the scanner of one synthetic hospital, and which labels it misses.

Every draw comes from the hospital's seed and name, so adding a hospital changes no other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from client.data.synthesis.anatomy import Anatomy, Head, Scanner, Volume, render
from client.data.synthesis.modes import MODES, Directions, Modes
from client.data.synthesis.regions import Floats, both_sides

Flags = npt.NDArray[np.bool_]

LOG_SCALE: Final = 0.055  # turns a direction's unit into a region's log-scale
BRIGHTNESS: Final = 0.06  # and into brightness of grey matter, which is 0.58
_VOLUME_NOISE: Final = 0.12  # sd of a measured log volume of both sides together
_AGES: Final = (18.0, 95.0)
_WHOLLY_MISSING: Final = {  # probability that a site never asked
    "handedness": 0.3,
    "bmi": 0.2,
    "fluid_intelligence": 0.4,
    "neuroticism": 0.4,
}
_SPORADICALLY_MISSING: Final = {  # probability that one person's label is not known
    "age": 0.01,
    "sex": 0.01,
    "handedness": 0.05,
    "bmi": 0.05,
    "fluid_intelligence": 0.08,
    "neuroticism": 0.08,
}
TARGETS: Final = (
    "age",
    "sex",
    "handedness",
    "bmi",
    "fluid_intelligence",
    "neuroticism",
    "diagnosis",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hospital:
    """What fixes one hospital's data, bit by bit.

    Attributes
    ----------
    strength
        Spread of the scanner effects: 0 none, 1 default, 2 hard.
    pool
        Share of the participants who belong to a clinical sample: aged about 72, diagnosis known.
    prevalence
        Share of patients in that sample.
    severity
        Median severity of the patients, 1 for a clear disease, 0.2 for a faint one.
    repeats
        Share of the participants with a second scan.
    missing
        Targets that the site lacks wholly; None draws them.
    age_mean, age_sd
        Years, of people outside the clinical sample; None draws them.
    shared_modes
        False removes all that the disease shares with the phenotypes (the negative control).
    shuffle_labels
        True gives each participant another one's labels.
    """

    name: str
    participants: int
    seed: int = 0
    role: Literal["train", "heldout"] = "train"
    strength: float = 1.0
    pool: float = 0.0
    prevalence: float = 0.5
    severity: float = 1.0
    repeats: float = 0.2
    missing: tuple[str, ...] | None = None
    age_mean: float | None = None
    age_sd: float | None = None
    shared_modes: bool = True
    shuffle_labels: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class People:
    """The participants of one hospital, as they are, not as the hospital knows them.

    All arrays have N participants first. `log_scales` and `brightness` (N, R) are what an oracle
    would see; `log_volumes` (N, 2, P), of pairs of regions, and `log_size` (N, 2) are measured,
    once a session.
    """

    age: Floats
    male: Flags
    left_handed: Flags
    bmi: Floats
    fluid_intelligence: Floats
    neuroticism: Floats
    in_pool: Flags
    diseased: Flags
    log_scales: Floats
    size: Floats
    thinning: Floats
    brightness: Floats
    log_volumes: Floats
    log_size: Floats
    scans: npt.NDArray[np.int64]

    def head(self, person: int) -> Head:
        """The anatomy that all scans of one participant show."""
        return Head(
            log_scales=self.log_scales[person],
            size=float(self.size[person]),
            age_z=float(_centred_age(self.age[person])),
            thinning=float(self.thinning[person]),
            brightness=self.brightness[person],
        )


def draw_scanner(hospital: Hospital) -> Scanner:
    """Draw the site's scanner; at strength 0 all sites have the same one."""
    random, strength = _generator(hospital, "scanner"), hospital.strength
    return Scanner(
        gamma=float(np.exp(random.normal() * 0.12 * strength)),
        grey_shift=random.normal() * 0.05 * strength,
        white_shift=random.normal() * 0.05 * strength,
        bias=random.normal(size=6) * 0.10 * strength,
        blur_voxels=abs(random.normal()) * 0.45 * strength,
        noise=0.02 + abs(random.normal()) * 0.02 * strength,
        zoom=random.normal() * 0.02 * strength,
    )


def draw_people(hospital: Hospital, modes: Modes) -> People:
    """Draw phenotypes, diagnoses and anatomy of the hospital's participants."""
    random, n = _generator(hospital, "people"), hospital.participants
    in_pool = _exactly(hospital.pool, n, random)
    age = _draw_ages(hospital, in_pool, random)
    z = _centred_age(age)
    male = random.random(n) < random.uniform(0.35, 0.65)
    left_handed = random.random(n) < 0.1
    bmi = np.clip(26 + 1.2 * z + 0.6 * male + 4 * random.normal(size=n), 14, 60)
    fluid_intelligence = -0.45 * z + random.normal(size=n)
    neuroticism = -0.4 * male + random.normal(size=n)
    diseased = _draw_patients(hospital, in_pool, age, random)
    severity = diseased * hospital.severity * np.exp(0.45 * random.normal(size=n))
    scores = np.column_stack(
        [
            z + 0.25 * np.maximum(z, 0) ** 2,
            male - 0.5,
            (bmi - 26) / 4,
            fluid_intelligence,
            neuroticism,
            left_handed,
        ]
    )

    def changes(directions: Directions) -> Floats:
        apart = directions.disease if hospital.shared_modes else directions.disease_apart
        return np.asarray(
            np.einsum("np,pr->nr", scores, directions.phenotypes)
            + np.outer(severity, apart)
            + 0.28 * np.einsum("nj,rj->nr", random.normal(size=(n, MODES)), modes.dictionary)
            + 0.6 * random.normal(size=(n, len(apart)))
        )

    log_scales = LOG_SCALE * changes(modes.shape)
    size = 0.04 * (male - 0.5) + 0.03 * random.normal(size=n)
    thinning = np.clip(0.10 + 0.05 * z + 0.02 * random.normal(size=n), 0, 0.5)
    volumes = 3 * both_sides(log_scales)
    measured = volumes[:, None] + _VOLUME_NOISE * random.normal(size=(n, 2, volumes.shape[1]))
    return People(
        age=age,
        male=male,
        left_handed=left_handed,
        bmi=bmi,
        fluid_intelligence=fluid_intelligence,
        neuroticism=neuroticism,
        in_pool=in_pool,
        diseased=diseased,
        log_scales=log_scales,
        size=size,
        thinning=thinning,
        brightness=BRIGHTNESS * changes(modes.contrast),
        log_volumes=measured,
        log_size=3 * size[:, None] + 0.01 * random.normal(size=(n, 2)),
        scans=1 + _exactly(hospital.repeats, n, random).astype(np.int64),
    )


def scan(
    anatomy: Anatomy, hospital: Hospital, people: People, person: int, session: int = 0
) -> Volume:
    """Image one participant once: (X, Y, Z) float32, whatever else has been imaged before."""
    random = _generator(hospital, "scan", person, session)
    return render(anatomy, people.head(person), draw_scanner(hospital), random)


def draw_labels(hospital: Hospital, people: People) -> dict[str, list[str]]:
    """What the hospital's table says: one list of N entries a column, `n/a` where not known."""
    random, n = _generator(hospital, "labels"), hospital.participants
    missing = {name for name, chance in _WHOLLY_MISSING.items() if random.random() < chance}
    if hospital.missing is not None:
        missing = set(hospital.missing)
    if not hospital.pool:
        missing.add("diagnosis")
    unknown = {name: random.random(n) < p for name, p in _SPORADICALLY_MISSING.items()}
    unknown["diagnosis"] = ~people.in_pool
    whose = random.permutation(n) if hospital.shuffle_labels else np.arange(n)
    entries: dict[str, npt.ArrayLike] = {
        "age": [f"{age:.1f}" for age in people.age],
        "sex": np.where(people.male, "M", "F"),
        "handedness": np.where(people.left_handed, "left", "right"),
        "bmi": [f"{bmi:.1f}" for bmi in people.bmi],
        "fluid_intelligence": [f"{score:.2f}" for score in people.fluid_intelligence],
        "neuroticism": [f"{score:.2f}" for score in people.neuroticism],
        "diagnosis": np.where(people.diseased, "ad", "control"),
    }
    return {
        name: [str(entry) for entry in np.where(unknown[name], "n/a", entries[name])[whose]]
        for name in TARGETS
        if name not in missing
    }


def _draw_ages(hospital: Hospital, in_pool: Flags, random: np.random.Generator) -> Floats:
    mean, sd = random.uniform(35, 62), random.uniform(8, 16)
    mean = mean if hospital.age_mean is None else hospital.age_mean
    sd = sd if hospital.age_sd is None else hospital.age_sd
    spread = random.normal(size=len(in_pool))
    return np.clip(np.where(in_pool, 72 + 7 * spread, mean + sd * spread), *_AGES)


def _draw_patients(
    hospital: Hospital, in_pool: Flags, age: Floats, random: np.random.Generator
) -> Flags:
    """Spread the patients evenly over the pool's ages, so that age does not tell them apart."""
    diseased = np.zeros(len(age), dtype=np.bool_)
    members = np.flatnonzero(in_pool)
    members = members[np.argsort(age[members], kind="stable")]
    counted = np.floor(random.random() + hospital.prevalence * np.arange(len(members) + 1))
    diseased[members] = np.diff(counted) > 0
    return diseased


def _exactly(share: float, n: int, random: np.random.Generator) -> Flags:
    """Choose a share of n participants at random, rounded to a whole number of them."""
    return np.asarray(random.permutation(n) < round(share * n))


def _centred_age(age: Floats | np.float64) -> Floats:
    return np.asarray((age - 50) / 18)


def _generator(hospital: Hospital, purpose: str, *numbers: int) -> np.random.Generator:
    """Independent draws for each site, purpose and scan, whatever else is drawn."""
    words = f"{hospital.seed}/{hospital.name}/{purpose}/{'/'.join(map(str, numbers))}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(words.encode()).digest()[:16]))
