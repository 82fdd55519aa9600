"""Areas under the curve: DeLong's covariance by its definition, Newcombe's interval by its equation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from client.learning.ranking import Areas, areas, exponential, newcombe


def scored(n: int, seed: int, models: int = 2, levels: int = 0) -> tuple[Any, list[Any]]:
    """Labels and correlated scores; `levels` makes ties."""
    chance = np.random.default_rng(seed)
    label = (np.arange(n) % 3 == 0).astype(np.float64)
    shared = chance.normal(size=n)
    scores = [label + shared + chance.normal(size=n) for _ in range(models)]
    return label, [np.round(one * levels) if levels else one for one in scores]


def kernel(one: float, other: float) -> float:
    return 0.5 if one == other else float(one > other)


@pytest.mark.parametrize("levels", [0, 1])
def test_the_covariance_is_delongs_by_its_definition(levels: int) -> None:
    """Every ill person is held against every well one, as the paper writes it (O(m n))."""
    label, scores = scored(40, 1, levels=levels)
    ill, well = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    placed = [
        np.array([[kernel(one[i], one[j]) for j in well] for i in ill]) for one in scores
    ]  # (m, n) each
    of_ill = np.cov([table.mean(1) for table in placed])
    of_well = np.cov([table.mean(0) for table in placed])
    found = areas(label, scores, np.arange(40))
    assert found.covariance == pytest.approx(of_ill / len(ill) + of_well / len(well))
    assert found.areas == pytest.approx([roc_auc_score(label, one) for one in scores])
    assert (found.positives, found.negatives) == (len(ill), len(well))


def test_ten_copies_of_each_scan_are_as_many_people_as_before() -> None:
    """Obuchowski's covariance counts people; DeLong's alone would be ten times too small."""
    label, scores = scored(40, 2)
    once = areas(label, scores, np.arange(40))
    copies = [np.repeat(one, 10) for one in scores]
    tenfold = areas(np.repeat(label, 10), copies, np.repeat(np.arange(40), 10))
    assert tenfold.covariance == pytest.approx(once.covariance)
    assert (tenfold.positives, tenfold.negatives) == (once.positives, once.negatives)
    as_people = areas(np.repeat(label, 10), copies, np.arange(400))
    assert as_people.covariance[0, 0] < 0.15 * once.covariance[0, 0]


def test_a_person_with_scans_of_both_classes_varies_as_she_was_drawn() -> None:
    """In task fMRI everybody is in every state: found again by drawing people anew."""
    chance = np.random.default_rng(0)

    def drawn(people: int) -> tuple[Any, Any, Any]:
        label = np.tile([0.0, 1.0], people)
        own = np.repeat(chance.normal(size=people), 2)
        return label, label + own + 0.5 * chance.normal(size=2 * people), np.arange(people)

    several = [drawn(60) for _ in range(800)]
    found = [areas(label, [score], np.repeat(person, 2)) for label, score, person in several]
    spread = np.std([one.areas[0] for one in found])
    told = np.sqrt(np.mean([one.covariance[0, 0] for one in found]))
    assert told == pytest.approx(spread, rel=0.075)  # three standard errors of 800 draws


@pytest.mark.parametrize("area", [0.0, 0.3, 0.9, 1.0])
def test_the_ends_solve_newcombes_equation(area: float) -> None:
    """An end is the area from which the one found lies just z of its own standard errors away."""
    m, n, z = 12, 30, 1.96
    for end in newcombe(area, m, n, z):
        if end in (0.0, 1.0) and end == area:
            continue  # nothing lies beyond a perfect area
        size = (m + n) / 2 - 1
        spread = 1 + size * (1 - end) / (2 - end) + size * end / (1 + end)
        error = (end * (1 - end) * spread / (m * n)) ** 0.5
        assert abs(end - area) == pytest.approx(z * error, rel=1e-6)
    low, high = newcombe(area, m, n, z)
    assert low < high


def test_a_perfect_area_of_few_people_is_not_certain() -> None:
    """1.000 (1.000 to 1.000) stood in a run's report, where the truth was held .52 of the time."""
    label = np.arange(20) < 4
    low, high = areas(label, [label * 0.5], np.arange(20)).mean(1.96)
    assert 0.5 < low < 0.75
    assert high == 1.0


def test_the_variance_that_was_found_widens_more_than_it_narrows() -> None:
    """Unequal spreads need twice Newcombe's variance; close to 1, DeLong's is too small itself."""

    def width(times: float) -> float:
        variance = times * exponential(0.9, 30, 70)
        found = Areas(areas=np.array([0.9]), covariance=np.array([[variance]]), positives=30,
                      negatives=70)  # fmt: skip
        low, high = found.mean(1.96)
        return high - low

    low, high = newcombe(0.9, 30, 70, 1.96)
    assert width(1.0) == pytest.approx(high - low)
    assert 0.75 * width(1.0) < width(0.5) < width(1.0) < width(1.5)
    assert width(1.0) - width(0.5) < width(1.5) - width(1.0)
