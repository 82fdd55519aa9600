"""What trainings with canaries show of epsilon, where some of them say how to score and to cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploy.audit.bounds import (
    OF_EACH,
    SMALL_DELTA,
    best_cut,
    best_guesses,
    by_one_run,
    by_rates,
    worth,
)
from deploy.audit.mechanism import SCORES, Mechanism

CALIBRATE: Final = 3  # one training in so many says where to cut, and no bound rests on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """What canaries have shown of epsilon, by the way to score that calibration chose."""

    score: str
    by_rates: float
    by_one_run: float
    games: int


def bounded(
    trials: Sequence[Mapping[str, NDArray[Any]]], mechanism: Mechanism, confidence: float = OF_EACH
) -> Bounded | None:
    """Bounds from trainings with canaries; a part of them says how to score and where to cut."""
    first, later = trials[::CALIBRATE], [t for n, t in enumerate(trials) if n % CALIBRATE]
    if not later:
        return None

    def of(some: Sequence[Mapping[str, NDArray[Any]]], name: str) -> NDArray[np.float64]:
        return np.concatenate([one[name] for one in some]).astype(np.float64)

    delta = mechanism.delta
    known, inside = of(first, "inside") > 0, of(later, "inside") > 0
    cuts = {name: best_cut(of(first, name), known, delta) for name in SCORES}
    score = max(cuts, key=lambda name: worth(cuts[name], of(first, name), known, delta))
    scores = of(later, score)
    small = min(SMALL_DELTA, delta)
    guesses = best_guesses(of(first, score), known, len(scores))
    return Bounded(
        score=score, games=len(scores),
        by_rates=by_rates(cuts[score], scores, inside, delta, confidence),
        by_one_run=by_one_run(scores, inside, small, guesses, confidence),
    )  # fmt: skip
