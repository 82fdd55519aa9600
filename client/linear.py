"""Linear models on regional volumes or on a frozen backbone's features: the rival to beat.

Ridge and logistic regression with the penalty chosen among nine by participants that the fit has
not seen; features are z-scored by the fit's own participants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from client.data.cohort import Cohort
from client.data.loading import batches, split_evenly
from client.training import autocast
from common import metrics
from common.errors import Refusal
from common.study import Target

Features = NDArray[np.float64]
Indices = NDArray[np.int64]

STRENGTHS: Final = tuple(10.0**power for power in np.linspace(-4, 2, 9))  # C: weak penalty last
_BLOCKS: Final = 6  # a side, where a site has no regional volumes


@dataclass(frozen=True, slots=True)
class LinearModel:
    """A fitted model with the centre and scale of its features."""

    target: Target
    model: Any
    centre: Features
    scale: Features

    def predict(self, features: Features, indices: Indices) -> NDArray[np.float64]:
        """Values in the target's unit (N,), probabilities (N,) or (N, K)."""
        x = (features[indices] - self.centre) / self.scale
        if self.target.kind == "regression":
            return self.model.predict(x)  # type: ignore[no-any-return]
        chances = self.model.predict_proba(x)
        if self.target.kind == "binary":
            return chances[:, 1]  # type: ignore[no-any-return]
        whole = np.zeros((len(x), len(self.target.classes)))
        whole[:, self.model.classes_.astype(int)] = chances
        return whole


def fit(
    target: Target, features: Features, label: NDArray[np.float32], indices: Indices, c: float
) -> LinearModel:
    """Fit on the samples `indices`, which must all be labelled."""
    x, y = features[indices], label[indices]
    centre, scale = x.mean(0), x.std(0)
    scale[scale <= 1e-9 * np.maximum(np.abs(centre), 1e-12)] = 1.0
    if target.kind == "regression":
        model: Any = Ridge(alpha=1 / c)
        y = y.astype(np.float64)
    else:
        model = LogisticRegression(C=c, max_iter=2000)
        y = y.astype(int)
    return LinearModel(target, model.fit((x - centre) / scale, y), centre, scale)


def choose(
    target: Target,
    features: Features,
    label: NDArray[np.float32],
    folds: Sequence[tuple[Indices, Indices]],
) -> float:
    """The penalty that does best on the second halves of `folds`, fitted on the first."""
    best, chosen = float("nan"), 1.0
    for c in STRENGTHS:
        parts = [
            (label[held], fit(target, features, label, rest, c).predict(features, held))
            for rest, held in folds
        ]
        found = metrics.exact(
            target, np.concatenate([y for y, _ in parts]), np.concatenate([p for _, p in parts])
        )
        score = found.get(metrics.primary(target), float("nan"))
        if metrics.better(target, score, best):
            best, chosen = score, c
    return chosen


def regional_features(cohort: Cohort) -> Features:
    """Regional volumes where the site has them for every scan, else the scan in coarse blocks."""
    if cohort.regions is not None and np.isfinite(cohort.regions).all():
        return cohort.regions
    if len(cohort.samples.shape) == 2:
        return np.asarray(cohort.samples, dtype=np.float64)
    if len(cohort.samples.shape) != 4:
        raise Refusal("NO_DATA", "this kind of data has no regions for a linear model")
    return np.stack([_blocks(np.asarray(sample, dtype=np.float64)) for sample in cohort.samples])


def backbone_features(network: Any, cohort: Cohort, device: torch.device) -> Features:
    """What the frozen backbone says of every sample: (N, F)."""
    network.to(device).eval()
    found = []
    with torch.inference_mode():
        order = split_evenly(np.arange(len(cohort.participants)), 64)
        for batch in batches(cohort, order, device):
            with autocast(device):
                found.append(network.backbone(batch.x).float().cpu().numpy())
    return np.concatenate(found).astype(np.float64)


def _blocks(sample: NDArray[np.float64]) -> NDArray[np.float64]:
    for axis in range(3):
        parts = np.array_split(sample, min(_BLOCKS, sample.shape[axis]), axis=axis)
        sample = np.stack([part.mean(axis) for part in parts], axis=axis)
    return sample.ravel()
