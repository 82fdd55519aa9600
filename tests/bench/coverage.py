"""How often intervals hold the truth, and how often equal models are told apart: by simulation.

Scores are binormal, so that the area under the curve is known exactly; every other truth is that of
200,000 people. A sample of one class alone tells nothing and is drawn again. About four minutes
on one core; the binomial error of a share near .95 is .013 at 300 repetitions, and .007 at a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from client.learning.intervals import Judged, difference, z_of
from common import metrics
from common.sections import Target
from server.report.verdicts import LEVEL, holm

NOMINAL: Final = 0.95
AGE: Final = Target(kind="regression", unit="years")
SEX: Final = Target(kind="binary", classes=("female", "male"))
SHAPES: Final = ("normal", "heavy tails", "shrunk to the mean", "skewed ages")
DIFFERENCE: Final = "difference"
STATE: Final = Target(kind="categorical", classes=("rest", "left", "right", "both"))
OF_SHARES: Final = ("auc", "balanced_accuracy", "f1", *metrics.F1S, "brier", DIFFERENCE)
OF_STATES: Final = ("accuracy", "balanced_accuracy", *metrics.F1S)
OF_AGES: Final = (*metrics.names(AGE), DIFFERENCE)

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Floats, Sequence[Floats], Floats]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One interval under one truth: how often it held it, and its median width."""

    what: str
    about: str
    n: int
    truth: float
    coverage: float
    width: float


def binormal(area: float, prevalence: float, spread: float = 1.0, scans: int = 1) -> Draw:
    """Labels, and probabilities of two models as good as each other; half-way lies at one half.

    spread: of the positives' scores, where that of the negatives is 1. scans: of each person, of
    which half of the variance is her own.
    """
    apart = float(stats.norm.ppf(area)) * (1 + spread * spread) ** 0.5

    def draw(chance: np.random.Generator, n: int) -> tuple[Floats, Sequence[Floats], Floats]:
        ill = np.zeros(1)
        while ill.all() or not ill.any():
            ill = (chance.random(n) < prevalence).astype(np.float64)
        label, person = np.repeat(ill, scans), np.repeat(np.arange(n), scans)
        shared = _scores(chance, n, scans)
        told = []
        for _ in range(2):  # correlated by half, as models of the same scans are
            noise = (shared + _scores(chance, n, scans)) / 2**0.5
            score = np.where(label > 0.5, apart + spread * noise, noise)
            told.append(1 / (1 + np.exp(-2 * (score - apart / 2))))
        return label, told, person

    return draw


def _scores(chance: np.random.Generator, n: int, scans: int) -> Floats:
    own = np.repeat(chance.normal(size=n), scans)
    return own if scans == 1 else (own + chance.normal(size=n * scans)) / 2**0.5


def states(common: float, clear: float, scans: int = 1) -> Draw:
    """Four states, of whom so many have the first; `clear` is how far scores lie apart."""

    def draw(chance: np.random.Generator, n: int) -> tuple[Floats, Sequence[Floats], Floats]:
        share = [common, *[(1 - common) / 3] * 3]
        label = np.zeros(1)
        while len(np.unique(label)) < 2:
            label = chance.choice(4, n, p=share).astype(np.float64)
        label, person = np.repeat(label, scans), np.repeat(np.arange(n), scans)
        told = []
        for _ in range(2):
            noise = np.stack([_scores(chance, n, scans) for _ in range(4)], 1)
            told.append(noise + clear * np.eye(4)[label.astype(int)])
        return label, told, person

    return draw


def ages(shape: str, scans: int = 1) -> Draw:
    """Ages, and what two models as good as each other make of them."""

    def draw(chance: np.random.Generator, n: int) -> tuple[Floats, Sequence[Floats], Floats]:
        age = {
            "skewed ages": lambda: 20 + chance.exponential(10, n),
            "shrunk to the mean": lambda: chance.uniform(20, 80, n),
        }.get(shape, lambda: chance.normal(50, 15, n))()
        pull = {"shrunk to the mean": -0.4, "skewed ages": -0.5}.get(shape, 0.0)
        label, person = np.repeat(age, scans), np.repeat(np.arange(n), scans)
        noise = chance.laplace if shape == "heavy tails" else chance.normal
        shared = np.repeat(noise(0, 4, n), scans)
        told = [label * (1 + pull) - 50 * pull + shared + noise(0, 4, n * scans) for _ in range(2)]
        return label, told, person

    return draw


def coverage(
    target: Target, draw: Draw, n: int, names: Sequence[str], *, about: str, repeats: int, seed: int
) -> Iterator[Found]:
    """Of the interval of each metric; `DIFFERENCE` is that of two models in the primary one."""
    chance = np.random.default_rng(seed)
    label, told, _ = draw(chance, 200_000)
    truth = {**metrics.exact(target, label, told[0]), DIFFERENCE: 0.0}
    primary = metrics.primary(target)
    held: dict[str, list[tuple[bool, float]]] = {name: [] for name in names}
    z = z_of(NOMINAL)
    for _ in range(repeats):
        label, told, person = draw(chance, n)
        ours, theirs = (_judged(target, label, one, person) for one in told)
        for name in names:
            bounds = ours.bounds(name, z) if name != DIFFERENCE else \
                difference(ours, theirs, primary, NOMINAL, tested=False).bounds  # fmt: skip
            _note(held[name], bounds, truth[name])
    for name, rows in held.items():
        inside, width = np.array(rows).T
        yield Found(
            what=f"{primary} minus {primary}" if name == DIFFERENCE else name, about=about, n=n,
            truth=truth[name], coverage=float(inside.mean()),
            width=float(np.median(width)),
        )  # fmt: skip


def _judged(target: Target, label: Floats, told: Floats, person: Any) -> Judged:
    return Judged(target=target, label=label, predicted=[told], people=person)


def _note(rows: list[tuple[bool, float]], bounds: tuple[float, float] | None, truth: float) -> None:
    """No interval holds nothing."""
    low, high = bounds or (np.nan, np.nan)
    rows.append((low <= truth <= high, high - low))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Shares of pages of equal models with at least one verdict."""

    people: int
    pairs: int
    adjusted: float
    unadjusted: float


def pages(*, people: int, rivals: int, sites: int, repeats: int, seed: int) -> Pages:
    """One model against rivals as good as itself, in age and sex, at each of some sites."""
    chance = np.random.default_rng(seed)
    found = np.zeros(2)
    for _ in range(repeats):
        p = [one for _ in range(sites) for one in _page_of_a_site(chance, people, rivals)]
        found += [min(holm(p)) < LEVEL, min(p) < LEVEL]
    return Pages(
        people=people, pairs=2 * rivals * sites, adjusted=float(found[0] / repeats),
        unadjusted=float(found[1] / repeats),
    )  # fmt: skip


def _page_of_a_site(chance: np.random.Generator, people: int, rivals: int) -> Iterator[float]:
    person = np.arange(people)
    for target, draw in ((AGE, ages("heavy tails")), (SEX, binormal(0.85, 0.3))):
        label, (first, _), _ = draw(chance, people)
        ours = _judged(target, label, first, person)
        for _ in range(rivals):
            told = _alike(chance, target, label)
            apart = difference(ours, _judged(target, label, told, person),
                               metrics.primary(target), NOMINAL)  # fmt: skip
            assert apart.p is not None
            yield apart.p


def _alike(chance: np.random.Generator, target: Target, label: Floats) -> Floats:
    """Another model as good as those of `ages` and `binormal`, of the same people."""
    n = len(label)
    if target.kind == "regression":
        return label + chance.laplace(0, 4, n) + chance.laplace(0, 4, n)
    apart = float(stats.norm.ppf(0.85)) * 2**0.5
    score = chance.normal(size=n) + apart * label
    return 1 / (1 + np.exp(-2 * (score - apart / 2)))


def table() -> str:
    """Everything, printed as it is nominal and as it was found."""
    return "\n".join([
        "| interval of | about | people | truth | nominal | found | median width |",
        "|---|---|---|---|---|---|---|",
        *map(_line, (*of_classes(), *of_states(), *of_ages())),
        "",
        "Pages of equal models with a verdict at 5 %:",
        "",
        "| people a site | paired tests | adjusted (Holm) | unadjusted |",
        "|---|---|---|---|",
        *(f"| {one.people} | {one.pairs} | {one.adjusted:.1%} | {one.unadjusted:.1%} |"
          for one in of_pages()),
    ])  # fmt: skip


def _line(row: Found) -> str:
    return (
        f"| {row.what} | {row.about} | {row.n} | {row.truth:.3g} | {NOMINAL:g} "
        f"| {row.coverage:.3f} | {row.width:.3g} |"
    )


def of_classes() -> Iterator[Found]:
    """Two classes: every size, prevalence and area; then spreads that differ, and more scans."""
    cells = [(area, n, prevalence, 1.0, 1) for area in (0.6, 0.75, 0.9, 0.97)
             for n in (20, 50, 200) for prevalence in (0.1, 0.2, 0.5)]  # fmt: skip
    cells += [(0.9, 50, 0.2, 1.6, 1), (0.9, 200, 0.2, 1.6, 1), (0.9, 50, 0.2, 0.6, 1),
              (0.9, 50, 0.2, 1.0, 3)]  # fmt: skip
    for area, n, prevalence, spread, scans in cells:
        about = f"prevalence {prevalence:g}" + (f", spread {spread:g}" if spread != 1 else "")
        yield from coverage(
            SEX, binormal(area, prevalence, spread, scans), n, OF_SHARES, repeats=300,
            about=about + (f", {scans} scans" if scans > 1 else ""), seed=int(1000 * area + n),
        )  # fmt: skip


def of_states() -> Iterator[Found]:
    """Four classes, as common as each other or not."""
    cells = [(common, clear, n, 1) for common in (0.25, 0.6) for clear in (0.5, 1.5, 3.0)
             for n in (20, 50, 200)]  # fmt: skip
    for common, clear, n, scans in [*cells, (0.25, 1.5, 50, 3)]:
        about = f"four states, {common:g} of the first" + (f", {scans} scans" if scans > 1 else "")
        yield from coverage(
            STATE, states(common, clear, scans), n, OF_STATES, repeats=300, about=about, seed=n
        )


def of_ages() -> Iterator[Found]:
    """Ages, and errors, of several shapes."""
    for shape in SHAPES:
        for n, scans in ((20, 1), (50, 1), (50, 3), (150, 1)):
            about = shape + (f", {scans} scans" if scans > 1 else "")
            yield from coverage(
                AGE, ages(shape, scans), n, OF_AGES, repeats=400, about=about, seed=n
            )


def of_pages() -> Iterator[Pages]:
    """Three sites, five rivals, two targets."""
    for people, repeats in ((50, 200), (150, 100)):
        yield pages(people=people, rivals=5, sites=3, repeats=repeats, seed=people)
