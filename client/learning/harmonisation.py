"""A site takes its own location and scale off its columns, by ComBat's shared constants.

A training site's are of its training people, whose covariates are known; they never leave it. A
site that judges has none (zero-shot), or those of some people without a label (calibration), where
whatever sets these people apart is taken for the site.

Everybody at a site is adjusted alike, x to mean + (x - mean - residual location) / sqrt(scale).
ComBat's own rows also add (c - centre)'slopes (1 - 1 / sqrt(scale)): it would tell a network the
very labels that it learns, and of whom it judges nobody knows them.

Letters: N samples, F columns, C covariates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort, Samples
from client.learning.census import summed
from client.site import Policy
from common.backbones.combat import Combat
from common.empirical_bayes import Effects, effects_of
from common.network.settling import settling
from common.study import Study

_log = getLogger("callosum.site")

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

FEWEST: Final = 3  # samples whose location and scale can be told


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What training sites settled, by the names of `Combat`'s buffers; float64."""

    mean: Floats
    residual: Floats
    slopes: Floats
    centre: Floats
    covariates: tuple[str, ...]

    @classmethod
    def among(cls, network: Any, arrays: Mapping[str, NDArray[Any]]) -> Self | None:
        """The constants among a model's arrays; None if its study harmonises nothing."""
        for place, module in settling(network).items():
            if isinstance(module, Combat) and f"{place}.mean" in arrays:
                parts = ("mean", "residual", "slopes", "centre")
                held = {part: np.asarray(arrays[f"{place}.{part}"]) for part in parts}
                return cls(**held, covariates=module.covariates)
        return None

    def effects(self, columns: Floats, covariates: Floats) -> Effects:
        """A site's own location and scale; none of a column that is left alone.

        columns: (N, F). covariates: (N, C).
        """
        live = self.residual > 0
        told = columns - self.mean - (covariates - self.centre) @ self.slopes
        z = told[:, live] / self.residual[live]
        found = effects_of(len(z), z.mean(0), z.var(0, ddof=1))
        location, scale = np.zeros(len(live)), np.ones(len(live))
        location[live], scale[live] = found.location, found.scale
        return Effects(location=location, scale=scale)

    def adjusted(self, columns: Floats, own: Effects) -> Floats:
        """(N, F) columns without a site's own location and scale."""
        above = columns - self.mean - self.residual * own.location
        found: Floats = np.where(self.residual > 0, self.mean + above / np.sqrt(own.scale), columns)
        return found


def harmonised(
    study: Study,
    policy: Policy,
    cohort: Cohort,
    network: Any,
    arrays: Mapping[str, NDArray[Any]],
) -> Cohort:
    """A training site's cohort as the model of these arrays is to see it.

    Location and scale are of the very people whom sums are of: a later sum over harmonised columns
    tells both, and of others they would tell those who are in no sum.
    """
    constants = Constants.among(network, arrays) if study.harmonises else None
    if constants is None or not constants.residual.any():  # not settled yet
        return cohort
    told, training = summed(study, cohort, settling(network), policy)
    covariates = np.zeros((len(training), len(constants.covariates)))
    for place, name in enumerate(constants.covariates):
        covariates[:, place] = told.labels[name][training]
    known = ~np.isnan(covariates).any(axis=1)
    if known.sum() < FEWEST:
        _log.warning(
            "columns are left as they are: %d training people have all of %s, harmonisation needs "
            "%d", known.sum(), ", ".join(constants.covariates), FEWEST,
        )  # fmt: skip
        return cohort
    columns = _columns(cohort.samples)
    own = constants.effects(columns[training[known]], covariates[known])
    return replace(cohort, samples=_with(cohort.samples, constants.adjusted(columns, own)))


def calibrated_on(cohort: Cohort, constants: Constants, chosen: Indices) -> Cohort:
    """A cohort without the location and scale that the samples `chosen` show; of no labels."""
    columns = _columns(cohort.samples)
    nobody = np.broadcast_to(constants.centre, (len(chosen), len(constants.centre)))
    own = constants.effects(columns[chosen], nobody)
    return replace(cohort, samples=_with(cohort.samples, constants.adjusted(columns, own)))


def _columns(samples: Samples) -> Floats:
    """(N, F): rows of a table, or what stands above the diagonals of matrices."""
    whole = np.asarray(samples[np.arange(len(samples))], dtype=np.float64)
    return whole if whole.ndim == 2 else whole[:, *np.triu_indices(whole.shape[1], 1)]


def _with(samples: Samples, columns: Floats) -> NDArray[np.float32]:
    """The same samples with these columns."""
    if len(samples.shape) == 2:
        return columns.astype(np.float32)
    whole = np.array(samples[np.arange(len(samples))], dtype=np.float32)
    rows, others = np.triu_indices(whole.shape[1], 1)
    whole[:, rows, others] = whole[:, others, rows] = columns
    return whole
