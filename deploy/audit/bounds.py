"""Lower bounds of epsilon from guesses who was in, that hold with a stated confidence.

A mechanism that is (epsilon, delta)-private allows no guess whose rate of hits is above
e^epsilon times its rate of false alarms, plus delta. Whoever guesses better has shown that epsilon
is larger. Scores are cut where other trials, played beforehand, say that it pays most.

Two bounds. `by_rates` (Clopper-Pearson on both rates) takes games for independent, which canaries
in directions of their own are, where each is drawn and noised by chance of her own. `by_one_run`
(Steinke, Nasr, Jagielski 2023, arXiv 2305.08846, theorem 5.2) asks for nothing but that coins were
fair, so people who were in one training together may be guessed together; it pays for that with
delta, which counts once for every game. So it is told at `SMALL_DELTA`, beside what was accounted
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Scores = NDArray[np.float64]  # (games,), larger where somebody seems to have been in
Inside = NDArray[np.bool_]  # (games,), who was

CONFIDENCE: Final = 0.95  # of all bounds together
BOUNDS: Final = 10  # of an audit, at most: two of the mechanism, four of each sort of shadow
OF_EACH: Final = 1 - (1 - CONFIDENCE) / BOUNDS  # so that all together hold
SMALL_DELTA: Final = 1e-6  # of `by_one_run`: a claim at one delta is a claim at each
_CAREFUL: Final = (0.999, CONFIDENCE, 0.5)  # by which cuts are compared: the first that tells
_CUTS: Final = 400  # places that are tried for a cut
_PRECISION: Final = 1e-4  # of an epsilon that is searched for
_MOST: Final = 60.0  # above it e^epsilon has no digits left


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Guess that who is on one side of `at` was in, or that she was not.

    inward: guessed in where the score is at least `at`; else guessed out where it is at most `at`.
    """

    at: float
    inward: bool

    def rates(self, scores: Scores, inside: Inside) -> tuple[int, int, int, int]:
        """Hits, of how many; false alarms, of how many."""
        guessed = scores >= self.at if self.inward else scores <= self.at
        meant = inside if self.inward else ~inside
        return (
            int(guessed[meant].sum()), int(meant.sum()),
            int(guessed[~meant].sum()), int((~meant).sum()),
        )  # fmt: skip


def best_cut(scores: Scores, inside: Inside, delta: float) -> Cut:
    """The cut that shows most on these games alone: one that few games speak for is none.

    Parameters
    ----------
    scores, inside : (games,) of trials that no bound will rest on
    """
    places = np.unique(np.quantile(scores, _places(len(scores))))
    cuts = [Cut(at=float(at), inward=inward) for at in places for inward in (True, False)]
    return max(cuts, key=lambda cut: worth(cut, scores, inside, delta))


def worth(cut: Cut, scores: Scores, inside: Inside, delta: float) -> tuple[float, ...]:
    """What a cut shows, most carefully first: of hundreds of cuts the luckiest is none."""
    return tuple(by_rates(cut, scores, inside, delta, sure) for sure in _CAREFUL)


def by_rates(
    cut: Cut, scores: Scores, inside: Inside, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Epsilon is at least this, with this confidence, if games are independent.

    >>> inside = np.arange(2000) % 2 == 0
    >>> never_wrong = by_rates(Cut(at=0.5, inward=True), inside.astype(float), inside, 1e-5)
    >>> bool(5.5 < never_wrong < 5.7)  # no false alarm among 1000: one in 271 is still possible
    True
    """
    return _by_rates(*cut.rates(scores, inside), delta, confidence)


def by_one_run(
    scores: Scores,
    inside: Inside,
    delta: float,
    guesses: tuple[int, int],
    confidence: float = CONFIDENCE,
) -> float:
    """Epsilon is at least this, with this confidence, however games hang together.

    guesses: how many with the highest scores are guessed in, and with the lowest out.
    """
    lowest = np.argsort(scores, kind="stable")
    high, low = guesses
    right = int(inside[lowest[len(scores) - high :]].sum()) + int((~inside[lowest[:low]]).sum())
    return _one_run(len(scores), high + low, right, delta, 1 - confidence)


def best_guesses(scores: Scores, inside: Inside, later: int) -> tuple[int, int]:
    """How many guesses in, and out, pay most in `later` games like these, but for delta."""
    share = later / max(1, len(scores))
    tried = [0, *np.unique(np.geomspace(1, max(2, len(scores) // 2), 16).astype(int)).tolist()]
    lowest = np.argsort(scores, kind="stable")
    known = inside[lowest]
    right_high = np.concatenate([[0], np.cumsum(known[::-1])])
    right_low = np.concatenate([[0], np.cumsum(~known)])

    def worth(pair: tuple[int, int]) -> float:
        high, low = pair
        made = round(share * (high + low))
        right = min(made, round(share * int(right_high[high] + right_low[low])))
        return _one_run(later, made, right, 0.0, 1 - CONFIDENCE) if made else 0.0

    high, low = max(((h, n) for h in tried for n in tried if h + n), key=worth)
    return round(share * high), round(share * low)


def _places(games: int) -> NDArray[np.float64]:
    """Shares of games at which cuts are tried, dense towards both ends, where few are wrong."""
    ends = np.geomspace(1 / max(2, games), 0.5, _CUTS // 2)
    return np.concatenate([ends, 1 - ends])


def _by_rates(
    hits: int, of: int, alarms: int, of_others: int, delta: float, confidence: float
) -> float:
    if not of or not of_others:
        return 0.0
    wrong = (1 - confidence) / 2  # each rate has its half
    least = float(stats.beta.ppf(wrong, hits, of - hits + 1)) if hits else 0.0
    most = 1.0
    if alarms < of_others:
        most = float(stats.beta.ppf(1 - wrong, alarms + 1, of_others - alarms))
    return max(0.0, log((least - delta) / most)) if least > delta else 0.0


def _one_run(games: int, made: int, right: int, delta: float, wrong: float) -> float:
    """Where the chance of so many right guesses becomes `wrong`."""
    low, high = 0.0, _MOST
    if _chance(games, made, right, low, delta) >= wrong:
        return 0.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if _chance(games, made, right, middle, delta) < wrong:
            low = middle
        else:
            high = middle
    return low


def _chance(games: int, made: int, right: int, epsilon: float, delta: float) -> float:
    """Of `right` or more right guesses of `made`, at most, were it (epsilon, delta)-private.

    beta + 2 m delta alpha of the theorem: delta lets chance tell on some, so that i more are right,
    at most as often as m delta / i.
    """
    accuracy = 1 / (1 + exp(-epsilon))
    beta = float(stats.binom.sf(right - 1, made, accuracy))
    if not delta or not right:
        return min(1.0, beta)
    fewer = np.arange(1, right + 1)
    below = stats.binom.cdf(right - 1, made, accuracy)
    between = below - stats.binom.cdf(right - 1 - fewer, made, accuracy)
    alpha = float(np.max(between / fewer))
    return min(1.0, beta + 2 * games * delta * alpha)
