"""Metrics as sums and counts first, ratios last: what sites send adds up, and is divided once.

A prediction is summarised by a `Counts` vector whose entries add over scans, batches and sites.
AUC adds up as two histograms of the predicted probability (512 bins: exact to about 1/1000); at a
site, where scores are at hand, `exact` is. Intervals resample participants, never scans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.sections import Target

Counts = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
Repeats = NDArray[np.float64]

_BINS: Final = 512


def counts(target: Target, label: Floats, prediction: Floats) -> Counts:
    """Sums over the labelled samples.

    Parameters
    ----------
    label : (N,) NaN where missing
    prediction : (N,) in the target's unit, (N,) probability of the positive class, or (N, K)

    Returns
    -------
    regression: n, sums of |e|, e^2, y, y^2, p, p^2, y p with e = p - y
    binary: histograms of the probability over negatives, then over positives
    categorical: the K x K table of true (rows) against predicted (columns) class, flattened
    """
    known = ~np.isnan(label)
    y, p = label[known].astype(np.float64), prediction[known].astype(np.float64)
    if target.kind == "regression":
        e = p - y
        sums = [np.abs(e), e * e, y, y * y, p, p * p, y * p]
        return np.array([float(len(y)), *(float(np.sum(values)) for values in sums)])
    if target.kind == "binary":
        place = np.clip((p * _BINS).astype(int), 0, _BINS - 1) + _BINS * (y > 0.5)
        return np.bincount(place, minlength=2 * _BINS).astype(np.float64)
    size = len(target.classes)
    place = y.astype(int) * size + p.argmax(1)
    return np.bincount(place, minlength=size * size).astype(np.float64)


def sound(target: Target, sums: Sequence[float]) -> bool:
    """Whether `sums` could be what `counts` gives for `target`; a site may send anything.

    >>> age = Target(kind="regression")
    >>> sound(age, [0.0] * 8), sound(age, [1.0]), sound(age, [-1.0, *[0.0] * 7])
    (True, False, False)
    """
    none = np.empty((0, len(target.classes)) if target.kind == "categorical" else 0)
    if len(sums) != len(counts(target, np.empty(0), none)):
        return False
    if target.kind == "regression":
        n, absolute, squared, _, yy, _, pp, _ = sums
        return n >= 0 and n == int(n) and min(absolute, squared, yy, pp) >= 0
    return min(sums) >= 0 and all(count == int(count) for count in sums)


def n_of(target: Target, sums: Counts) -> int:
    """Labelled samples behind `sums`."""
    return int(sums[0] if target.kind == "regression" else sums.sum())


def merged(by_site: Iterable[Mapping[str, Sequence[float]]], prefix: str) -> dict[str, Counts]:
    """Sum over sites the named counts that start with `prefix`, by what follows it.

    >>> merged([{"loss/age": (3.0, 2.0)}, {"loss/age": (1.0, 1.0), "label/sex": (4.0,)}], "loss/")
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


def ratios(target: Target, sums: Counts) -> dict[str, float]:
    """The metrics of a target from its sums; only those that are defined."""
    if n_of(target, sums) == 0:
        return {}
    if target.kind == "regression":
        return _regression(sums)
    if target.kind == "binary":
        return _binary(sums[:_BINS], sums[_BINS:])
    table = sums.reshape(len(target.classes), -1)
    held = table.sum(1) > 0
    found = {"accuracy": float(np.trace(table) / table.sum())}
    if held.sum() > 1:
        recall = np.diag(table)[held] / table.sum(1)[held]
        found["balanced_accuracy"] = float(recall.mean())
    return found


def _regression(sums: Counts) -> dict[str, float]:
    n, absolute, squared, y, yy, p, pp, yp = (float(value) for value in sums)
    found = {"mae": absolute / n, "rmse": (squared / n) ** 0.5}
    spread = (n * yy - y * y) * (n * pp - p * p)
    if spread > 1e-9 * max(yy * pp, 1e-300):
        found["r"] = (n * yp - y * p) / spread**0.5
    return found


def _binary(negatives: Counts, positives: Counts) -> dict[str, float]:
    if not (positives.sum() and negatives.sum()):
        return {}  # of one class alone nothing can be told apart
    middle = _BINS // 2
    recalls = positives[middle:].sum() / positives.sum(), negatives[:middle].sum() / negatives.sum()
    below = np.concatenate([[0.0], np.cumsum(negatives)[:-1]])
    wins = float((positives * (below + negatives / 2)).sum())
    return {
        "balanced_accuracy": float(np.mean(recalls)),
        "auc": wins / float(positives.sum() * negatives.sum()),
    }


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
            right = ((p >= 0.5) == (y > 0.5)).astype(np.float64)
            recalls = _recalls(np.eye(2)[(y > 0.5).astype(int)], right, weights_RN)
            return {"auc": _auc(y, p, weights_RN), "balanced_accuracy": recalls}
        right = (p.argmax(1) == y).astype(np.float64)
        return {
            "accuracy": weights_RN @ right / weights_RN.sum(1),
            "balanced_accuracy": _recalls(
                np.eye(len(target.classes))[y.astype(int)], right, weights_RN
            ),
        }


def _regressions(y: Floats, p: Floats, weights_RN: Floats) -> dict[str, Repeats]:
    e = p - y
    # centred first: a resampling's spread is otherwise the small difference of large sums
    u, v = y - y.mean(), p - p.mean()
    sums = weights_RN @ np.stack([np.ones_like(e), np.abs(e), e * e, u, u * u, v, v * v, u * v], 1)
    n, absolute, squared, y1, y2, p1, p2, yp = sums.T
    found = {"mae": absolute / n, "rmse": np.sqrt(squared / n)}
    if p.std() > 1e-9 * max(float(np.abs(p).max()), 1e-300):  # a constant has no correlation
        spread = (n * y2 - y1 * y1) * (n * p2 - p1 * p1)
        found["r"] = np.where(spread > 0, (n * yp - y1 * p1) / np.sqrt(spread), np.nan)
    return found


def _recalls(classes_NK: Floats, right: Floats, weights_RN: Floats) -> Repeats:
    """Mean recall over the classes that are present; NaN where that is one alone."""
    held = weights_RN @ classes_NK
    recall = (weights_RN @ (classes_NK * right[:, None])) / held
    several = (held > 0).sum(1) > 1
    found = np.full(len(weights_RN), np.nan)
    found[several] = np.nanmean(np.where(held > 0, recall, np.nan)[several], axis=1)
    return found


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


def mae_interval(sums: Counts, people: int, confidence: float) -> tuple[float, float]:
    """Normal interval of a mean absolute error over `people`, from a regression target's sums.

    As wide as if each participant had one scan: repeated scans say little that is new.
    """
    n, absolute, squared = (float(value) for value in sums[:3])
    deviation = max(squared / n - (absolute / n) ** 2, 0.0) ** 0.5
    half = NormalDist().inv_cdf((1 + confidence) / 2) * deviation / max(people, 1) ** 0.5
    return absolute / n - half, absolute / n + half


def primary(target: Target) -> str:
    """The metric by which models for `target` are compared."""
    return {"regression": "mae", "binary": "auc", "categorical": "balanced_accuracy"}[target.kind]


def names(target: Target) -> tuple[str, ...]:
    """Every metric that there is for `target`."""
    return {
        "regression": ("mae", "rmse", "r"),
        "binary": ("auc", "balanced_accuracy"),
        "categorical": ("accuracy", "balanced_accuracy"),
    }[target.kind]


def better(target: Target, candidate: float, best: float) -> bool:
    """Whether `candidate` beats `best` in the primary metric."""
    if np.isnan(best) or np.isnan(candidate):
        return bool(np.isnan(best) and not np.isnan(candidate))
    return candidate < best if target.kind == "regression" else candidate > best


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
