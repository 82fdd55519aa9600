"""How often intervals hold the truth, and how often equal models are told apart: by simulation.

Scores are binormal, so that the area under the curve is known exactly; every other truth is that of
200,000 people. A sample of one class alone tells nothing and is drawn again. The binomial error of
a share near .95 is .006 at 1,500 repetitions: about twenty minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from client.learning.intervals import Judged, difference, z_of
from client.learning.ranking import areas
from common import metrics
from common.sections import Target
from server.report.verdicts import LEVEL, holm

NOMINAL: Final = 0.95
AGE: Final = Target(kind="regression", unit="years")
SEX: Final = Target(kind="binary", classes=("female", "male"))
SHAPES: Final = ("normal", "heavy tails", "shrunk to the mean", "skewed ages")
DIFFERENCE: Final = "difference"
DELONG: Final = "difference, DeLong's own interval"  # a rival to ours
REPEATS: Final = 1500
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


def binormal(
    area: float, prevalence: float, spread: float = 1.0, scans: int = 1, other: float | None = None
) -> Draw:
    """Labels, and probabilities of two models; half-way lies at one half.

    spread: of the positives' scores, where that of the negatives is 1. scans: of each person, of
    which half of the variance is her own. other: area of the second model; by default the first's.
    """
    aparts = [float(stats.norm.ppf(one)) * (1 + spread * spread) ** 0.5
              for one in (area, other or area)]  # fmt: skip

    def draw(chance: np.random.Generator, n: int) -> tuple[Floats, Sequence[Floats], Floats]:
        ill = np.zeros(1)
        while ill.all() or not ill.any():
            ill = (chance.random(n) < prevalence).astype(np.float64)
        label, person = np.repeat(ill, scans), np.repeat(np.arange(n), scans)
        shared = _scores(chance, n, scans)
        told = []
        for apart in aparts:  # correlated by half, as models of the same scans are
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
    target: Target, draw: Draw, n: int, names: Sequence[str], *, about: str, repeats: int,
    seed: int, apart: float = 0.0,
) -> Iterator[Found]:  # fmt: skip
    """Of the interval of each metric; `DIFFERENCE` is that of two models in the primary one.

    apart: how far the two truly lie apart in it.
    """
    chance = np.random.default_rng(seed)
    label, told, _ = draw(chance, 200_000)
    primary = metrics.primary(target)
    truth = {**metrics.exact(target, label, told[0]), **dict.fromkeys((DIFFERENCE, DELONG), apart)}
    held: dict[str, list[tuple[bool, float]]] = {name: [] for name in names}
    for _ in range(repeats):
        label, told, person = draw(chance, n)
        ours, theirs = (_judged(target, label, one, person) for one in told)
        for name in names:
            _note(held[name], _bounds(ours, theirs, primary, name), truth[name])
    for name, rows in held.items():
        inside, width = np.array(rows).T
        yield Found(
            what=name.replace(DIFFERENCE, f"{primary} minus {primary}"), about=about, n=n,
            truth=truth[name], coverage=float(inside.mean()),
            width=float(np.median(width)),
        )  # fmt: skip


def _bounds(ours: Judged, theirs: Judged, primary: str, name: str) -> tuple[float, float] | None:
    if name == DIFFERENCE:
        return difference(ours, theirs, primary, NOMINAL, tested=False).bounds
    if name != DELONG:
        return ours.bounds(name, z_of(NOMINAL))
    both = areas(ours.label, [*ours.predicted, *theirs.predicted], ours.people)
    (a, b), covariance = both.areas, both.covariance
    half = z_of(NOMINAL) * float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) ** 0.5
    return a - b - half, a - b + half


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
    """Everything, as it is nominal and as it was found: first over cells, then each cell."""
    found = [*of_classes(), *of_unequal(), *of_states(), *of_ages()]
    return "\n".join([
        *summary(found),
        "",
        "| interval of | about | people | truth | nominal | found | median width |",
        "|---|---|---|---|---|---|---|",
        *map(_line, found),
        "",
        "Pages of equal models with a verdict at 5 %:",
        "",
        "| people a site | paired tests | adjusted (Holm) | unadjusted |",
        "|---|---|---|---|",
        *(f"| {one.people} | {one.pairs} | {one.adjusted:.1%} | {one.unadjusted:.1%} |"
          for one in of_pages()),
    ])  # fmt: skip


def summary(found: Sequence[Found]) -> Iterator[str]:
    """Lowest, median and highest share of each interval by people, and how many cells lie outside.

    Outside is what is not .93 to .97 by more than two binomial errors.
    """
    yield "| interval of | people | cells | lowest | median | highest | below .93 | above .97 |"
    yield "|---|---|---|---|---|---|---|---|"
    doubt = 2 * (0.93 * 0.07 / REPEATS) ** 0.5
    for what, n in dict.fromkeys((one.what, one.n) for one in found):
        shares = np.array([one.coverage for one in found if (one.what, one.n) == (what, n)])
        yield (
            f"| {what} | {n} | {len(shares)} | {shares.min():.3f} | {np.median(shares):.3f} "
            f"| {shares.max():.3f} | {(shares < 0.93 - doubt).sum()} "
            f"| {(shares > 0.97 + doubt).sum()} |"
        )


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
            SEX, binormal(area, prevalence, spread, scans), n, OF_SHARES, repeats=REPEATS,
            about=about + (f", {scans} scans" if scans > 1 else ""), seed=int(1000 * area + n),
        )  # fmt: skip


def of_unequal() -> Iterator[Found]:
    """Differences of areas that are there, beside DeLong's interval: narrower, and too narrow."""
    cells = [(area, other, n, prevalence) for area, other in ((0.97, 0.97), (0.97, 0.85), (0.9, 0.7))
             for n in (20, 50, 200) for prevalence in (0.2, 0.5)]  # fmt: skip
    for area, other, n, prevalence in cells:
        yield from coverage(
            SEX, binormal(area, prevalence, other=other), n, (DIFFERENCE, DELONG), repeats=REPEATS,
            about=f"areas {area:g} and {other:g}, prevalence {prevalence:g}", seed=n,
            apart=area - other,
        )  # fmt: skip


def of_states() -> Iterator[Found]:
    """Four classes, as common as each other or not."""
    cells = [(common, clear, n, 1) for common in (0.25, 0.6) for clear in (0.5, 1.5, 3.0)
             for n in (20, 50, 200)]  # fmt: skip
    for common, clear, n, scans in [*cells, (0.25, 1.5, 50, 3)]:
        about = f"four states, {common:g} of the first" + (f", {scans} scans" if scans > 1 else "")
        yield from coverage(
            STATE, states(common, clear, scans), n, OF_STATES, repeats=REPEATS, about=about, seed=n
        )


def of_ages() -> Iterator[Found]:
    """Ages, and errors, of several shapes."""
    for shape in SHAPES:
        for n, scans in ((20, 1), (50, 1), (50, 3), (150, 1)):
            about = shape + (f", {scans} scans" if scans > 1 else "")
            yield from coverage(
                AGE, ages(shape, scans), n, OF_AGES, repeats=REPEATS, about=about, seed=n
            )


def of_pages() -> Iterator[Pages]:
    """Three sites, five rivals, two targets."""
    for people, repeats in ((50, 200), (150, 100)):
        yield pages(people=people, rivals=5, sites=3, repeats=repeats, seed=people)
