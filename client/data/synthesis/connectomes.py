"""Time series of brains that never were, in which age, sex, tasks and a disease share their modes.

A person's regions load on seven networks; ten modes of loading are moved by age, by sex, by what
the person does in the scanner and by the disease, whose mode is partly that of age and of a task.
What is learnt of one thing therefore helps with another. Each hospital has modes, noise, gain and
timing of its own.

Letters in shapes: T time points, R regions, K networks, J modes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

REGIONS: Final = 116  # as many as AAL has
STATES: Final = ("rest", "memory", "motor", "language")
_NETWORKS: Final = 7
_MODES: Final = 10
_AGES: Final = (18.0, 90.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clinic:
    """What fixes one hospital's data, bit by bit.

    strength: spread of the differences between scanners, 0 none, 1 usual, 2 hard. severity: of the
    disease, 1 clear, 0.5 faint. clinical: everyone rests once, and half are patients; otherwise
    nobody is, and everyone is scanned in two states. shared_modes: False takes from the disease all
    that it has in common with age and tasks (the negative control).
    """

    name: str
    participants: int
    seed: int = 0
    clinical: bool = True
    strength: float = 1.0
    severity: float = 0.5
    shared_modes: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """What is true of one participant; `states` are those of the runs."""

    age: float
    male: bool
    patient: bool
    states: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Modes:
    """The dictionary that all hospitals of one seed share.

    loading: (R, K). modes: (J, R, K), each of rank one. directions: what moves the modes, each (J,)
    of length one, by name: age, sex, disease and the states.
    """

    loading: Floats
    modes: Floats
    directions: dict[str, Floats]


def shared_modes(seed: int, *, shared: bool = True) -> Modes:
    """The dictionary of a seed."""
    chance = _generator(seed, "modes")
    membership = np.arange(REGIONS) % _NETWORKS
    loading = chance.normal(0, 0.25, (REGIONS, _NETWORKS))
    loading[np.arange(REGIONS), membership] += 1
    of_regions = chance.normal(0, 1, (_MODES, REGIONS, 1))
    of_networks = chance.normal(0, 1, (_MODES, 1, _NETWORKS))
    of_networks /= np.linalg.norm(of_networks, axis=2, keepdims=True)
    directions = {
        name: _unit(chance.normal(size=_MODES)) for name in ("age", "sex", "alone", *STATES)
    }
    alone = directions.pop("alone")
    common = 0.35 * directions["age"] + 0.7 * directions["memory"]
    directions["disease"] = _unit(common + 0.5 * alone) if shared else _apart(alone, directions)
    directions["rest"] = np.zeros(_MODES)
    return Modes(loading=loading, modes=0.05 * of_regions * of_networks, directions=directions)


def draw_people(clinic: Clinic) -> list[Person]:
    """The participants of a hospital, in order."""
    chance = _generator(clinic.seed, clinic.name, "people")
    middle, spread, share = (
        chance.uniform(35, 62),
        chance.uniform(8, 16),
        chance.uniform(0.35, 0.65),
    )
    patients = chance.permutation(clinic.participants) < clinic.participants / 2
    found = []
    for number in range(clinic.participants):
        drawn = chance.permutation(STATES)[:2].tolist()
        found.append(
            Person(
                age=round(float(np.clip(chance.normal(middle, spread), *_AGES)), 1),
                male=bool(chance.random() < share),
                patient=clinic.clinical and bool(patients[number]),
                states=("rest",) if clinic.clinical else tuple(sorted(drawn, key=STATES.index)),
            )
        )
    return found


def series(clinic: Clinic, modes: Modes, person: Person, number: int, run: int) -> Floats:
    """(T, R) signals of one run."""
    scanner = _generator(clinic.seed, clinic.name, "scanner")
    points, memory = int(scanner.integers(90, 221)), scanner.uniform(0.25, 0.6)
    odd = scanner.normal(0, 0.35 * clinic.strength, _MODES)
    noise, whole = 1.6 * np.exp(scanner.normal(0, 0.1 * clinic.strength)), scanner.uniform(0.2, 0.5)
    own = _generator(clinic.seed, clinic.name, "person", number)
    z = _moved(modes, person, person.states[run], clinic.severity) + odd
    z = z + own.normal(0, 0.9, _MODES)
    loading = modes.loading + np.einsum("j,jrk->rk", z, modes.modes)
    loading = loading + own.normal(0, 0.05, loading.shape)
    gain = np.exp(own.normal(0, 0.15 * clinic.strength, REGIONS))
    chance = _generator(clinic.seed, clinic.name, "run", number, run)
    networks = _autoregressive(chance.normal(size=(points + 20, _NETWORKS)), memory)[20:]
    signals = networks @ loading.T + noise * chance.normal(size=(points, REGIONS))
    signals += whole * abs(own.normal(1, 0.3)) * chance.normal(size=(points, 1))
    return np.asarray(gain * signals + 0.25 * chance.normal(size=(points, REGIONS)))


def _moved(modes: Modes, person: Person, state: str, severity: float) -> Floats:
    towards = modes.directions
    years = (person.age - 50) / 18
    z = 2.2 * (0.8 * years * towards["age"] + 1.2 * (person.male - 0.5) * towards["sex"])
    z = z + 3.2 * towards[state]
    return np.asarray(z + 2.2 * severity * person.patient * towards["disease"])


def _autoregressive(shocks: Floats, memory: float) -> Floats:
    """AR(1) of deviation one, along time."""
    found = shocks.copy()
    for point in range(1, len(found)):
        found[point] = memory * found[point - 1] + np.sqrt(1 - memory**2) * shocks[point]
    return found


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / np.linalg.norm(vector))


def _apart(vector: Floats, others: dict[str, Floats]) -> Floats:
    """`vector` without what it shares with any of `others`."""
    span, _ = np.linalg.qr(np.stack([others[name] for name in sorted(others)], axis=1))
    return _unit(vector - span @ (span.T @ vector))


def _generator(seed: int, *words: str | int) -> np.random.Generator:
    """Independent draws for each hospital, purpose and run, whatever else is drawn."""
    text = "/".join(map(str, (seed, *words)))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))
