"""Linear models on regional measures or on a frozen network's features: the rival to beat.

Ridge and logistic regression with the penalty chosen among nine by participants that the fit has
not seen; features are z-scored by the fit's own participants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import ThreadpoolController

from client.data.cohort import Cohort
from common import metrics
from common.arrays import Arrays
from common.errors import Refusal
from common.sections import Target
from common.target_transform import restored, transformed

Features = NDArray[np.float64]
Indices = NDArray[np.int64]

_PARTS: Final = ("centre", "scale", "coefficients", "intercepts")
STRENGTHS: Final = tuple(10.0**power for power in np.linspace(-4, 2, 9))  # C: weak penalty last
# one thread: on such small matrices more of them wait for each other (15 times slower on two busy
# cores), and the bits would depend on how many there are
_BLAS: Final = ThreadpoolController()
_BLOCKS: Final = 6  # a side, where a site has no regional volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearModel:
    """A fitted linear model: plain numbers, so that it can be sent and judged like any other.

    centre, scale: (F,) of the features. coefficients: (F, K) and intercepts: (K,), with K = 1 but
    for categorical targets, where a class that the fit never saw has intercept -1e9.
    """

    target: Target
    centre: Features
    scale: Features
    coefficients: Features
    intercepts: Features

    def takes(self, features: int) -> bool:
        """Whether the arrays are of a model for so many features; they may be anybody's."""
        outputs = self.target.outputs
        return (
            self.centre.shape == self.scale.shape == (features,)
            and self.coefficients.shape == (features, outputs)
            and self.intercepts.shape == (outputs,)
        )

    def predict(self, features: Features, indices: Indices) -> NDArray[np.float64]:
        """Values in the target's unit (N,), probabilities (N,) or (N, K)."""
        x = _whole((features[indices] - self.centre) / self.scale)
        score: NDArray[np.float64] = x @ self.coefficients + self.intercepts
        if self.target.kind == "categorical":
            return softmax(score, axis=1)  # type: ignore[no-any-return]
        if self.target.kind == "binary":
            return expit(score[:, 0])  # type: ignore[no-any-return]
        return restored(self.target, score[:, 0])

    def arrays(self, name: str) -> Arrays:
        """The model as named arrays, to be read back by `from_arrays`."""
        return {f"linear/{name}/{part}": getattr(self, part) for part in _PARTS}

    @staticmethod
    def from_arrays(name: str, target: Target, arrays: Arrays) -> LinearModel:
        """The model that `arrays(name)` described."""
        return LinearModel(
            target=target, **{part: arrays[f"linear/{name}/{part}"] for part in _PARTS}
        )


def fit(
    target: Target, features: Features, label: NDArray[np.float32], indices: Indices, c: float
) -> LinearModel:
    """Fit on the samples `indices`, which must all be labelled."""
    return _fitted(target, _Design.of(features[indices]), label[indices], c)


def choose(
    target: Target,
    features: Features,
    label: NDArray[np.float32],
    folds: Sequence[tuple[Indices, Indices]],
) -> float:
    """The penalty that does best on the second halves of `folds`, fitted on the first."""
    best, chosen = float("nan"), 1.0
    designs = [_Design.of(features[rest]) for rest, _ in folds]
    for c in STRENGTHS:
        parts = [
            (label[held], _fitted(target, design, label[rest], c).predict(features, held))
            for design, (rest, held) in zip(designs, folds, strict=True)
        ]
        found = metrics.exact(
            target, np.concatenate([y for y, _ in parts]), np.concatenate([p for _, p in parts])
        )
        score = found.get(metrics.primary(target), float("nan"))
        if metrics.better(target, score, best):
            best, chosen = score, c
    return chosen


def regional_features(cohort: Cohort) -> Features:
    """Measures where the site has them for every scan; else a table itself, a volume in blocks."""
    if cohort.measures is not None and np.isfinite(cohort.measures).all():
        return np.asarray(cohort.measures, dtype=np.float64)
    everyone = np.arange(len(cohort.participants))
    if cohort.layout == "table":
        return np.asarray(cohort.samples[everyone], dtype=np.float64)
    if cohort.layout != "volume":
        raise Refusal("NO_DATA", "this kind of data has no measures for a linear model")
    one_by_one = (cohort.samples[everyone[i : i + 1]][0] for i in everyone)
    return np.stack([_blocks(np.asarray(sample, dtype=np.float64)) for sample in one_by_one])


def features_width(cohort: Cohort) -> int:
    """How many regional features the site has, without reading any sample."""
    if cohort.measures is not None and np.isfinite(cohort.measures).all():
        return int(cohort.measures.shape[1])
    if cohort.layout == "table":
        return int(cohort.samples.shape[1])
    if cohort.layout != "volume":
        raise Refusal("NO_DATA", "this kind of data has no measures for a linear model")
    return math.prod(min(_BLOCKS, side) for side in cohort.samples.shape[1:4])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Design:
    """Standardised samples in as many columns as they span, and what leads coefficients back.

    A penalised fit of N samples lies in their span, whatever the number of columns: 19,900 edges
    of a connectome cost what N do. Fewer columns than samples stay as they are.
    """

    centre: Features
    scale: Features
    x: Features
    back: Features | None = None

    @staticmethod
    def of(features: Features) -> _Design:
        known = ~np.isnan(features)
        if known.all():
            centre, scale = features.mean(0), features.std(0)
        else:  # a column that is missing is its own mean
            held, n = np.where(known, features, 0.0), np.maximum(known.sum(0), 1)
            centre = held.sum(0) / n
            scale = np.sqrt(np.where(known, np.square(features - centre), 0.0).sum(0) / n)
        scale[scale <= 1e-9 * np.maximum(np.abs(centre), 1e-12)] = 1.0
        x = _whole((features - centre) / scale)
        plain = _Design(centre=centre, scale=scale, x=x)
        if x.shape[1] <= len(x):
            return plain
        with _BLAS.limit(limits=1, user_api="blas"):
            squares, u = np.linalg.eigh(x @ x.T)
            kept = squares > 1e-12 * squares[-1]
            if not kept.any():
                return plain
            lengths = np.sqrt(squares[kept])
            back = x.T @ (u[:, kept] / lengths)
        return _Design(centre=centre, scale=scale, x=u[:, kept] * lengths, back=back)


def _whole(x: Features) -> Features:
    """Standardised features with 0, their mean, where one is missing."""
    return np.where(np.isnan(x), 0.0, x)


def _fitted(target: Target, design: _Design, y: NDArray[np.float32], c: float) -> LinearModel:
    with _BLAS.limit(limits=1, user_api="blas"):
        if target.kind == "regression":
            ridge = Ridge(alpha=1 / c).fit(design.x, transformed(target, y))
            coefficients, intercepts = ridge.coef_[:, None], np.array([ridge.intercept_])
        else:
            logistic = LogisticRegression(C=c, max_iter=2000)
            logistic.fit(design.x, y.astype(int))
            coefficients, intercepts = _classes(target, logistic)
        coefficients = coefficients if design.back is None else design.back @ coefficients
    return LinearModel(
        target=target,
        centre=design.centre,
        scale=design.scale,
        coefficients=coefficients,
        intercepts=intercepts,
    )


def _classes(target: Target, model: LogisticRegression) -> tuple[Features, Features]:
    """Coefficients (F, K) and intercepts (K,) for the target's own K outputs."""
    if target.kind == "binary":
        return model.coef_.T, model.intercept_
    seen = model.classes_.astype(int)
    coefficients = np.zeros((model.coef_.shape[1], len(target.classes)))
    intercepts = np.full(len(target.classes), -1e9)
    if len(seen) == 2:  # scikit-learn then fits one logit instead of a softmax
        coefficients[:, seen[1]], intercepts[seen] = model.coef_[0], [0.0, model.intercept_[0]]
    else:
        coefficients[:, seen], intercepts[seen] = model.coef_.T, model.intercept_
    return coefficients, intercepts


def _blocks(sample: NDArray[np.float64]) -> NDArray[np.float64]:
    for axis in range(3):
        parts = np.array_split(sample, min(_BLOCKS, sample.shape[axis]), axis=axis)
        sample = np.stack([part.mean(axis) for part in parts], axis=axis)
    return sample.ravel()
