"""How well a network's features tell sites apart, from each site's sums alone.

No site can say so by itself: all of its people are of one site. Each adds up products of its
people's features, projected to D numbers by directions drawn from the study's seed. A discriminant
(Fisher 1936) of training people's sums is tried on validation people, whose scores are taken for
normal, with the mean and covariance that their sums tell. Beside it stands how well it guesses by
luck, where as many people come of one distribution. Of few directions it is a lower bound.

Letters: D directions, S sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from common.errors import Refusal
from common.network.plan import Plan, Rule
from common.seams import SHARED
from common.seeding import seed_of
from common.study import Study

BEFORE: Final = "shortcuts-before"  # what orders to settle are about: weights as drawn
AFTER: Final = "shortcuts-after"  # or as trained
MODELS: Final = (BEFORE, AFTER)
_DRAWN: Final = 2000  # people of each site whose scores are drawn
_DRAWN_BY_LUCK: Final = 300  # likewise, of each federation
_LUCK: Final = 200  # federations of one distribution

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """People of one site: how many, their mean (D,) and their scatter about it (D, D)."""

    n: float
    mean: Floats
    scatter: Floats

    @classmethod
    def of_sums(cls, sums: Mapping[str, NDArray[Any]]) -> Self:
        """From the sums of a report."""
        n, total = float(sums["n"]), np.asarray(sums["sum"], dtype=np.float64)
        products = _square(np.asarray(sums["products"], dtype=np.float64), len(total))
        return cls(n=n, mean=total / n, scatter=products - np.outer(total, total) / n)

    @classmethod
    def of_rows(cls, x: Floats) -> Self:
        """From rows (N, D)."""
        mean = x.mean(0)
        return cls(n=float(len(x)), mean=mean, scatter=(x - mean).T @ (x - mean))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guessed:
    """Share of people whose site is told by their features: mean over sites, by chance, by luck.

    luck: what one of twenty federations without any difference between sites exceeds.
    """

    share: float
    chance: float
    luck: float
    sites: int

    @property
    def told(self) -> str:
        """For readers."""
        beyond = "beyond" if self.share > self.luck else "within"
        return (
            f"{self.share:.0%} of people, {beyond} what luck gives (chance is {self.chance:.0%} of "
            f"{self.sites} sites, luck goes up to {self.luck:.0%})"
        )


def plan_of_sums(study: Study) -> Plan:
    """Names and shapes of what a site adds up."""
    d = study.evaluation.shortcuts
    shapes: dict[str, tuple[int, ...]] = {"n": (), "sum": (d,), "products": (d * (d + 1) // 2,)}
    return {
        name: Rule(shape=shape, dtype="float64", group=SHARED, role="statistic", kept=False)
        for name, shape in shapes.items()
    }


def sums_of(study: Study, features: Floats) -> dict[str, NDArray[Any]]:
    """Sums over people's features (N, F), projected."""
    d, width = study.evaluation.shortcuts, features.shape[1]
    directions = np.random.default_rng(seed_of(study.seed, "shortcuts")).normal(size=(width, d))
    x = features @ directions / np.sqrt(width)
    return {
        "n": np.array(float(len(x))),
        "sum": x.sum(0),
        "products": (x.T @ x)[np.triu_indices(d)],
    }


def refuse_unsound(sums: Mapping[str, NDArray[Any]]) -> None:
    """Raise `Refusal` for sums that nobody's features have."""
    n = float(sums["n"])
    if n < 1 or n != int(n):
        raise Refusal("REPORT_MALFORMED", f"sums over {n:g} samples")
    variances = Moments.of_sums(sums).scatter.diagonal()
    size = np.abs(np.asarray(sums["products"])).max()
    if (variances < -1e-6 * size).any():
        raise Refusal("REPORT_MALFORMED", "no features have such sums")


def guessed(
    training: Mapping[str, Moments], validation: Mapping[str, Moments], seed: int
) -> Guessed | None:
    """How well validation people's sites are told; None of fewer than two sites."""
    names = sorted(training.keys() & validation.keys())
    if len(names) < 2:
        return None
    fitted, judged = [training[name] for name in names], [validation[name] for name in names]
    generator = np.random.default_rng(seed)
    d = len(fitted[0].mean)
    by_luck = []
    for _ in range(_LUCK):
        alike, others = (
            [Moments.of_rows(generator.normal(size=(int(one.n), d))) for one in of]
            for of in (fitted, judged)
        )
        by_luck.append(_share(alike, others, generator, _DRAWN_BY_LUCK))
    return Guessed(
        share=_share(fitted, judged, generator, _DRAWN),
        chance=1 / len(names),
        luck=float(np.quantile(by_luck, 0.95)),
        sites=len(names),
    )


def _share(
    fitted: list[Moments], judged: list[Moments], generator: np.random.Generator, drawn: int
) -> float:
    """Mean over sites of the share of people whom the discriminant gives to their own site."""
    left = max(1.0, sum(one.n for one in fitted) - len(fitted))
    within = np.sum([one.scatter for one in fitted], axis=0) / left
    precision = np.linalg.pinv(within, hermitian=True)
    means = np.stack([one.mean for one in fitted])
    weights_DS = precision @ means.T
    offsets_S = -0.5 * (means.T * weights_DS).sum(0)
    shares = []
    for number, one in enumerate(judged):
        values, vectors = np.linalg.eigh(one.scatter / max(1.0, one.n - 1))
        noise = generator.normal(size=(drawn, len(values)))
        x = one.mean + (noise * np.sqrt(values.clip(min=0))) @ vectors.T
        shares.append(float(((x @ weights_DS + offsets_S).argmax(1) == number).mean()))
    return float(np.mean(shares))


def _square(triangle: Floats, size: int) -> Floats:
    found = np.zeros((size, size))
    rows, columns = np.triu_indices(size)
    found[rows, columns] = found[columns, rows] = triangle
    return found
