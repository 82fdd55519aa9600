"""Ridge regression from sums: what samples add up to, its solutions, and which to take.

With w_s = n_s^-e the weight of a sample at site s, a solution minimises

    sum_s w_s sum_i (z_i - b - u_i'a)^2 + penalty (sum_s w_s n_s) |a|^2,

where u are the features standardised by those same weights, but for the last ones where they have a
scale of their own (`unscaled`), which are centred alone. Penalty and exponent are chosen by
leaving sites out: the squared error at a site follows from its own sums alone. Letters: F features,
K outputs, P penalties. All float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

_FLAT: Final = 1e-9  # of its mean square: a feature that varies less is constant
_BLAS: Final = ThreadpoolController()
_FOLDS: Final = 20  # most groups of sites that are left out in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """What a site's samples add up to, with 1 as the first of F + 1 features.

    gram: (F + 1, F + 1) sum of u u'. cross: (F + 1, K) sum of u z'. squares: (K,) sum of z^2.
    """

    gram: Tensor
    cross: Tensor
    squares: Tensor

    @property
    def n(self) -> float:
        """How many samples, or their weight."""
        return float(self.gram[0, 0])

    def times(self, weight: float) -> Products:
        """The same of samples that weigh so much each."""
        return Products(
            gram=self.gram * weight, cross=self.cross * weight, squares=self.squares * weight
        )

    def plus(self, other: Products | None) -> Products:
        """Both together."""
        if other is None:
            return self
        return Products(
            gram=self.gram + other.gram,
            cross=self.cross + other.cross,
            squares=self.squares + other.squares,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Ridge solutions for P penalties, on features standardised by the samples they are of.

    centre, deviation: (F,), the deviation infinite where a feature does not vary, whose
    coefficient is then 0. coefficients: (P, F, K), intercepts: (K,), the mean of z.
    freedom: (P,) effective number of parameters.
    """

    centre: Tensor
    deviation: Tensor
    coefficients: Tensor
    intercepts: Tensor
    freedom: Tensor

    @staticmethod
    def of(products: Products, penalties: Sequence[float], unscaled: int = 0) -> Path:
        """Solve for all penalties by one eigendecomposition; the last features are `unscaled`."""
        n = products.n
        centre, means = products.gram[0, 1:] / n, products.cross[0] / n
        covariance = products.gram[1:, 1:] / n - torch.outer(centre, centre)
        variance, size = covariance.diagonal(), products.gram.diagonal()[1:] / n
        deviation = torch.where(variance > _FLAT * size, variance, torch.inf).sqrt()
        if unscaled:
            deviation[-unscaled:] = torch.where(deviation[-unscaled:].isfinite(), 1.0, torch.inf)
        correlation = covariance / torch.outer(deviation, deviation)
        values, vectors = _eigen(correlation)
        right = (products.cross[1:] / n - torch.outer(centre, means)) / deviation[:, None]
        shrunk = 1 / (values + torch.tensor(penalties, dtype=values.dtype)[:, None])  # (P, F)
        coefficients = vectors @ (shrunk[:, :, None] * (vectors.T @ right))
        return Path(
            centre=centre,
            deviation=deviation,
            coefficients=coefficients,
            intercepts=means,
            freedom=1 + (values * shrunk).sum(1),
        )

    def squared_errors(self, products: Products) -> Tensor:
        """(P,) sums of squared errors on the samples that `products` are of."""
        a = self.coefficients / self.deviation[:, None]  # of raw features
        first = self.intercepts - (self.centre[:, None] * a).sum(1)  # (P, K)
        whole = torch.cat([first[:, None], a], 1)  # (P, F + 1, K)
        crossed = (whole * products.cross).sum(1)
        quadratic = (whole * (products.gram @ whole)).sum(1)
        return (products.squares - 2 * crossed + quadratic).sum(1)


def chosen(
    sites: Sequence[Products],
    penalties: Sequence[float],
    exponents: Sequence[float],
    unscaled: int = 0,
) -> tuple[float, float]:
    """(penalty, exponent) with the least squared error where sites are left out in turn.

    The first of the exponents holds unless a later one is better by more than a standard error over
    sites: otherwise one site that is unlike the others would choose it. Of one site alone, by
    generalised cross-validation (Golub et al. 1979).
    """
    held = [site for site in sites if site.n]
    if len(held) == 1:
        path = Path.of(held[0], penalties, unscaled)
        left = (held[0].n - path.freedom).clamp(min=1e-9)
        score = path.squared_errors(held[0]) / left.square()
        return penalties[int(score.argmin())], 0.0
    taken, least = (penalties[0], exponents[0]), None
    for exponent in exponents:
        errors = _left_out(held, penalties, exponent, unscaled)
        best = int(errors.sum(0).argmin())
        ours = errors[:, best]
        if least is None or _is_surely_less(ours, least):
            taken, least = (penalties[best], exponent), ours
    return taken


def _left_out(
    held: Sequence[Products], penalties: Sequence[float], exponent: float, unscaled: int
) -> Tensor:
    """(S, P) squared errors at each of S sites, of solutions without it."""
    weighted = [site.times(site.n**-exponent) for site in held]
    found = torch.zeros(len(held), len(penalties), dtype=torch.float64)
    for fold in range(min(len(held), _FOLDS)):
        rest = None
        for one in (site for i, site in enumerate(weighted) if i % _FOLDS != fold):
            rest = one.plus(rest)
        if rest is None:
            continue
        path = Path.of(rest, penalties, unscaled)
        for number in range(fold, len(held), _FOLDS):
            found[number] = path.squared_errors(held[number])
    return found


def _is_surely_less(ours: Tensor, theirs: Tensor) -> bool:
    """Whether errors (S,) are less by more than one standard error over sites."""
    apart = theirs - ours
    return bool(apart.sum() > apart.std() * math.sqrt(len(apart)))


def _eigen(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none negative, and vectors; by one thread, since more wait for each other."""
    with _BLAS.limit(limits=1, user_api="blas"):
        values, vectors = np.linalg.eigh(correlation.numpy())
    return torch.from_numpy(values).clamp(min=0), torch.from_numpy(vectors)


def packed(square: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix (F, F), row by row."""
    rows, columns = torch.triu_indices(*square.shape, device=square.device)
    return square[rows, columns]


def unpacked(triangle: Tensor) -> Tensor:
    """Symmetric matrices (..., F, F) from their upper triangles."""
    size = math.isqrt(2 * triangle.shape[-1])
    rows, columns = torch.triu_indices(size, size)
    square = triangle.new_zeros((*triangle.shape[:-1], size, size))
    square[..., rows, columns] = triangle
    square[..., columns, rows] = triangle
    return square
