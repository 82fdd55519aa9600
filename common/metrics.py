"""Metrics: made where the labels are, rounded when they leave, put together by what they weigh.

Losses add up as sums and counts. What a site measures leaves with three figures: a site is asked
often, and each exact number would be an equation about its people. How surely a metric is known is
told at the site (`client/learning/intervals.py`), from the same sums without each participant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.sections import Target

Counts = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
Repeats = NDArray[np.float64]

FIGURES: Final = 3  # of any metric that leaves a site
_MOST_WEIGHTS: Final = 1 << 26  # of resamplings at once, 512 MiB
_BINS: Final = 10  # of probabilities, for the calibration error
CHOSEN: Final = "_chosen"  # behind a metric: at the threshold that other participants chose
SAID: Final = "said"  # the mean probability of the class that a network predicts
DELETED: Final = (1, 5, 20, 50)  # per cent of a sample's places
AT_RANDOM: Final = "_at_random"
AGREEMENT: Final = "agreement"  # of two kinds of maps, a rank correlation
OVER_DRAWS: Final = "_over_draws"  # behind a metric: its mean over draws of people, and repeats
VERDICT_PEOPLE: Final = 50  # whom a verdict on two models needs, and of each class the next
VERDICT_OF_A_CLASS: Final = 10
MEDIAN: Final = "_median"  # behind a metric: over the repeats of a protocol
REPEATS: Final = "repeats"  # of a protocol, that say anything
FLIPPED: Final = "_sign_flip"  # behind a difference: its p-value is of repeats' signs
WITHIN: Final = "_within_repeats"  # behind a difference: the share of repeats that tell it apart
OVER_SITES: Final = "_over_sites"  # behind a metric: its mean over sites, each counting once
FEWEST_SITES: Final = 5  # of that mean
FEWEST: Final = 3  # people of an interval or a correlation: two always lie on a line
OF_A_LINE: Final = ("r", "r2", "slope", "bias_slope")  # what a constant, or two people, have not
F1S: Final = ("f1_macro", "f1_weighted")  # over classes: each alike, or by who is of it
_OF_ALL_LABELS: Final = (*OF_A_LINE, "f1", *F1S, "ece")


def merged(by_site: Iterable[Mapping[str, Sequence[float]]], prefix: str) -> dict[str, Counts]:
    """Sum over sites the named counts that start with `prefix`, by what follows it.

    >>> merged([{"loss/age": (3.0, 2.0)}, {"loss/age": (1.0, 1.0), "other/sex": (4.0,)}], "loss/")
    {'age': array([4., 3.])}
    """
    total: dict[str, Counts] = {}
    for found in by_site:
        for name, sums in found.items():
            if name.startswith(prefix):
                key = name.removeprefix(prefix)
                array = np.array(sums, dtype=np.float64)
                total[key] = total[key] + array if key in total else array
    return total


def figures(value: float, digits: int = FIGURES) -> float:
    """A number as it leaves a site: so many significant figures, and no more.

    A metric to thirteen digits is an equation about every label behind it.

    >>> figures(12.3456), figures(0.00123456), figures(-98765.0), figures(0.0)
    (12.3, 0.00123, -98800.0, 0.0)
    """
    return float(f"{value:.{digits - 1}e}")


def together(metric: str, values: Sequence[float], weights: Sequence[float]) -> float | None:
    """A metric over several sites at once, from each site's own and what it weighs.

    Means of errors and shares are then what one place would have found. An AUC, or a mean recall,
    is the mean over sites: samples of two sites are never ranked against each other. What needs
    all labels at once, as a correlation does, or all repeats, cannot be put together so.

    >>> together("mae", [4.0, 6.0], [10, 30]), together("rmse", [1.0, 7.0], [1, 1])
    (5.5, 5.0)
    """
    own = metric == REPEATS or metric.endswith((MEDIAN, FLIPPED, WITHIN))
    if own or metric in _OF_ALL_LABELS or not sum(weights):
        return None
    power = 2 if metric == "rmse" else 1
    total = sum(weight * value**power for value, weight in zip(values, weights, strict=True))
    found: float = (total / sum(weights)) ** (1 / power)
    return found


def interval_together(
    metric: str,
    values: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    weights: Sequence[float],
) -> tuple[float, float]:
    """Interval of what `together` says, from the sites' own: as of people who are at one site each.

    By the method of variance estimates recovery (Zou and Donner 2008), which keeps ends that lie
    unequally far and so stays on the metric's scale.

    >>> interval_together("mae", [5.0] * 4, [(4.0, 6.0)] * 4, [1, 1, 1, 1])
    (4.5, 5.5)
    """
    power = 2 if metric == "rmse" else 1
    shares = [weight / sum(weights) for weight in weights]
    value = sum(share * each**power for share, each in zip(shares, values, strict=True))
    low, high = (
        sum((share * (end[side] ** power - each**power)) ** 2
            for share, each, end in zip(shares, values, bounds, strict=True)) ** 0.5
        for side in (0, 1)
    )  # fmt: skip
    return max(value - low, 0.0) ** (1 / power) if power > 1 else value - low, (value + high) ** (
        1 / power
    )


def exact(target: Target, label: Floats, prediction: Floats) -> dict[str, float]:
    """Metrics from the predictions of labelled samples themselves; NaN where undefined.

    >>> binary = Target(kind="binary", classes=("no", "yes"))
    >>> exact(binary, np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.1, 0.4, 0.35, 0.8]))["auc"]
    0.75
    """
    once = np.ones((1, len(label)))
    return {
        name: float(values[0])
        for name, values in resampled(target, label, prediction, once).items()
    }


def resampled(
    target: Target, label: Floats, prediction: Floats, weights_RN: Floats
) -> dict[str, Repeats]:
    """Every metric for R resamplings at once, each given as the weight of every labelled sample.

    Parameters
    ----------
    label : (N,) without NaN
    prediction : (N,) or (N, K), as for `counts`
    weights_RN : (R, N) how often each sample was drawn

    Returns
    -------
    dict of (R,) arrays; NaN where a resampling leaves a metric undefined
    """
    y, p = label.astype(np.float64), prediction.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        if target.kind == "regression":
            return _regressions(y, p, weights_RN)
        if target.kind == "binary":
            return _binaries(y > 0.5, p, weights_RN)
        right = (p.argmax(1) == y).astype(np.float64)
        classes_KK = np.eye(len(target.classes))
        held, said = classes_KK[y.astype(int)], classes_KK[p.argmax(1)]
        return {
            "accuracy": weights_RN @ right / weights_RN.sum(1),
            "balanced_accuracy": _recalls(held, right, weights_RN),
            **_f1s(held, said, weights_RN),
        }


def _regressions(y: Floats, p: Floats, weights_RN: Floats) -> dict[str, Repeats]:
    """Errors; and how far predictions follow the labels, which one label or three people tell."""
    sums_SR = (weights_RN @ _error_sums(y, p)).T
    n, _, _, y1, y2, p1, p2, _ = sums_SR
    told = _of_errors(sums_SR)
    found = {name: told[name] for name in ("mae", "rmse")}
    defined = (weights_RN > 0).sum(1) >= FEWEST
    of_y, of_p = n * y2 - y1 * y1, n * p2 - p1 * p1
    labels, both = defined & (of_y > 0), defined & (of_y * of_p > 0)
    if _vary(y):
        found |= {name: np.where(labels, told[name], np.nan) for name in ("r2", "bias_slope")}
    if _vary(p):  # a constant has no correlation
        found |= {name: np.where(both, told[name], np.nan) for name in ("r", "slope")}
    return found


def _vary(values: Floats) -> bool:
    return bool(values.std() > 1e-9 * max(float(np.abs(values).max()), 1e-300))


def sample_sums(target: Target, label: Floats, prediction: Floats) -> NDArray[np.float64]:
    """(N, S) what each sample adds to the sums that `of_sums` takes; not of several classes."""
    return {"regression": _error_sums, "binary": _square_sums}[target.kind](label, prediction)


def of_sums(target: Target, sums: Any) -> dict[str, Any]:
    """The metrics that are made of S sums over samples, which may be complex or of many draws."""
    return {"regression": _of_errors, "binary": _of_squares}[target.kind](sums)


def _error_sums(label: Floats, prediction: Floats) -> NDArray[np.float64]:
    """(N, 8) one, absolute and squared error; label, prediction, their squares and product.

    Label and prediction are centred first: a resampling's spread is otherwise the small difference
    of large sums.
    """
    y, p = label.astype(np.float64), prediction.astype(np.float64)
    e, u, v = p - y, y - y.mean(), p - p.mean()
    return np.stack([np.ones_like(e), np.abs(e), e * e, u, u * u, v, v * v, u * v], 1)


def _of_errors(sums: Any) -> dict[str, Any]:
    """Every metric of a regression.

    r2: 1 less the squared errors by those of the mean label. slope: of the label on the prediction,
    1 where errors do not depend on it. bias_slope: of the error on the label, below 0 where high
    labels are told too low and low ones too high.
    """
    n, absolute, squared, y1, y2, p1, p2, yp = sums
    of_y, of_p, of_both = n * y2 - y1 * y1, n * p2 - p1 * p1, n * yp - y1 * p1
    return {
        "mae": absolute / n,
        "rmse": (squared / n) ** 0.5,
        "r": of_both / (of_y * of_p) ** 0.5,
        "r2": 1 - squared * n / of_y,
        "slope": of_both / of_p,
        "bias_slope": of_both / of_y - 1,
    }


def _binaries(ill: NDArray[np.bool_], p: Floats, weights_RN: Floats) -> dict[str, Repeats]:
    """Ranking, decisions at one half, and probabilities; nothing of one class alone."""
    y, said = ill.astype(np.float64), (p >= 0.5).astype(np.float64)
    n, of_ill = weights_RN.sum(1), weights_RN @ y
    both = (of_ill > 0) & (of_ill < n)
    hits, nowhere = weights_RN @ (y * said), np.full(len(weights_RN), np.nan)
    held, told = np.eye(2)[ill.astype(int)], np.eye(2)[said.astype(int)]
    bin_of = np.minimum((p * _BINS).astype(int), _BINS - 1)
    apart = weights_RN @ (np.eye(_BINS)[bin_of] * (p - y)[:, None])  # (R, bins)
    return {
        "auc": _auc(y, p, weights_RN),
        "balanced_accuracy": _recalls(held, (said == y).astype(np.float64), weights_RN),
        "f1": np.where(both, 2 * hits / (of_ill + weights_RN @ said), np.nan),
        **_f1s(held, told, weights_RN),
        # defined without the one ill person too, or leaving her out would leave no interval
        "brier": _of_squares((weights_RN @ _square_sums(y, p)).T)["brier"]
        if 0 < y.sum() < len(y)
        else nowhere,
        "ece": np.abs(apart).sum(1) / n if 0 < y.sum() < len(y) else nowhere,
    }


def _square_sums(label: Floats, probability: Floats) -> NDArray[np.float64]:
    """(N, 2) one, and the squared error."""
    squared = np.square(probability.astype(np.float64) - label)
    return np.stack([np.ones_like(squared), squared], 1)


def _of_squares(sums: Any) -> dict[str, Any]:
    """The mean squared error of probabilities."""
    n, squared = sums
    return {"brier": squared / n}


def _recalls(classes_NK: Floats, right: Floats, weights_RN: Floats) -> Repeats:
    """Mean recall over the classes that are present; NaN where that is one alone."""
    held = weights_RN @ classes_NK
    recall = (weights_RN @ (classes_NK * right[:, None])) / held
    several = (held > 0).sum(1) > 1
    found = np.full(len(weights_RN), np.nan)
    found[several] = np.nanmean(np.where(held > 0, recall, np.nan)[several], axis=1)
    return found


def _f1s(held_NK: Floats, said_NK: Floats, weights_RN: Floats) -> dict[str, Repeats]:
    """F1 of every class that anybody is of or is said to be: their mean, and by who is of each."""
    held, said = weights_RN @ held_NK, weights_RN @ said_NK
    f1 = 2 * (weights_RN @ (held_NK * said_NK)) / (held + said)
    several = (held > 0).sum(1) > 1
    found = np.full((2, len(weights_RN)), np.nan)
    found[0, several] = np.nanmean(f1[several], axis=1)
    found[1, several] = (np.nansum(held * f1, axis=1) / held.sum(1))[several]
    return dict(zip(F1S, found, strict=True))


def _auc(y: Floats, p: Floats, weights_RN: Floats) -> Repeats:
    """Probability that a positive scores above a negative, ties counting half."""
    order = np.argsort(p, kind="stable")
    starts = np.flatnonzero(np.diff(p[order], prepend=-np.inf))
    weights = weights_RN[:, order]
    positive = np.add.reduceat(weights * (y[order] > 0.5), starts, axis=1)
    negative = np.add.reduceat(weights * (y[order] <= 0.5), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + negative / 2)).sum(1)
    found: Repeats = wins / (positive.sum(1) * negative.sum(1))
    return found


def primary(target: Target) -> str:
    """The metric by which models for `target` are compared."""
    return {"regression": "mae", "binary": "auc", "categorical": "balanced_accuracy"}[target.kind]


def names(target: Target) -> tuple[str, ...]:
    """Every metric that there is for `target`."""
    return {
        "regression": ("mae", "rmse", *OF_A_LINE),
        "binary": ("auc", "balanced_accuracy", "f1", *F1S, "brier", "ece"),
        "categorical": ("accuracy", "balanced_accuracy", *F1S),
    }[target.kind]


def of_rounds(target: Target) -> tuple[str, ...]:
    """Those that a site tells in every round of training; each is another equation about people."""
    told = ("mae", "rmse", "r", "auc", "accuracy", "balanced_accuracy")
    return tuple(name for name in names(target) if name in told)


def threshold(label: Floats, probability: Floats) -> float | None:
    """The probability from which to say "ill" so that recalls are best on average (Youden 1950).

    Half-way between two that occur; of several as good, the one next to a half. None for one class.

    >>> threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.9]))
    0.25
    """
    ill, p = label > 0.5, probability.astype(np.float64)
    if ill.all() or not ill.any():
        return None
    known = np.unique(p)
    cuts = np.concatenate([[known[0]], (known[1:] + known[:-1]) / 2])
    recall = 1 - np.searchsorted(np.sort(p[ill]), cuts) / ill.sum()
    spared = np.searchsorted(np.sort(p[~ill]), cuts) / (~ill).sum()
    best = cuts[np.isclose(recall + spared, (recall + spared).max())]
    return float(best[np.argmin(np.abs(best - 0.5))])


def without(share: int) -> str:
    """Name of the probability of what was said, after the loudest per cent of a map is deleted.

    >>> without(5), without(5) + AT_RANDOM
    ('said_without_05', 'said_without_05_at_random')
    """
    return f"{SAID}_without_{share:02d}"


def of_maps(target: Target, *, by_relevance: bool) -> tuple[str, ...]:
    """Every metric of how faithful maps are to a network that predicts `target`."""
    told = () if target.kind == "regression" else (SAID, *(without(share) for share in DELETED))
    drawn = (name + AT_RANDOM for name in told[1:])
    return (*told, *drawn, *((AGREEMENT,) if by_relevance else ()))


def is_of_all_draws(metric: str) -> bool:
    """Whether a number of fine-tuning speaks of all draws of participants at once.

    >>> [is_of_all_draws(one) for one in ("auc", "auc_over_draws", "auc_minus_linear")]
    [False, True, True]
    """
    return metric.endswith((OVER_DRAWS, MEDIAN)) or "_minus_" in metric or metric == REPEATS


def better(target: Target, candidate: float, best: float) -> bool:
    """Whether `candidate` beats `best` in the primary metric."""
    if np.isnan(best) or np.isnan(candidate):
        return bool(np.isnan(best) and not np.isnan(candidate))
    return candidate < best if target.kind == "regression" else candidate > best


def mean_by_person(
    values: Floats,
    participants: Sequence[str],
    generator: np.random.Generator,
    repeats: int,
) -> tuple[float, Repeats]:
    """The mean over people of means over their samples, and that of resampled people.

    >>> mean_by_person(np.array([1.0, 3.0, 5.0]), "aab", np.random.default_rng(0), 2)[0]
    3.5
    """
    _, places = np.unique(np.asarray(list(participants)), return_inverse=True)
    means = np.bincount(places, weights=values) / np.bincount(places)
    at_once = max(1, min(repeats, _MOST_WEIGHTS // len(means)))
    names = [str(place) for place in range(len(means))]
    parts = [
        draws(names, generator, min(at_once, repeats - done)) @ means / len(means)
        for done in range(0, repeats, at_once)
    ]
    return float(means.mean()), np.concatenate(parts)


def draws(
    participants: Sequence[str], generator: np.random.Generator, repeats: int
) -> NDArray[np.float64]:
    """Bootstrap weights (R, N): participants drawn with replacement, each with all of her scans.

    Drawing scans instead would count a person with many scans as many people and narrow intervals.
    """
    _, person_of = np.unique(np.asarray(participants), return_inverse=True)
    people = int(person_of.max()) + 1
    chances = np.full(people, 1 / people)
    return generator.multinomial(people, chances, size=repeats)[:, person_of].astype(np.float64)


def percentiles(values: Repeats, confidence: float) -> tuple[float, float] | None:
    """The interval that holds `confidence` of the resamplings in which the metric is defined."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
