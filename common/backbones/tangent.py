"""Connectomes as seen from a reference: the tangent space of positive definite matrices.

The reference is the mean of the training sites' matrices, which the coordinator makes of their sums
before the first round; no site that judges has a part in it, and it is frozen with the model
(Pennec et al. 2006; Varoquaux et al. 2010). Each sample C becomes log(G^-1/2 C G^-1/2).

Letters in shapes: B samples, R regions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

_LEAST: Final = 1e-4  # eigenvalue; what is not positive definite would be at minus infinity


class Tangent(nn.Module):
    """Correlations (B, R, R) to tangent vectors, symmetric matrices (B, R, R)."""

    passes = 1
    whitening: Tensor

    def __init__(self, regions: int) -> None:
        super().__init__()
        self.register_buffer("whitening", torch.zeros(regions, regions))  # until it is settled

    def forward(self, x: Tensor) -> Tensor:
        seen = self.whitening @ heard(x) @ self.whitening
        return through(seen, torch.log).to(x.dtype)

    def sums(self, x: Tensor, labels: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Sum of the matrices, how many they are, and how many hold no region's own variance."""
        n = torch.tensor([float(len(x))], dtype=torch.float64, device=x.device)
        bare = (torch.diagonal(x, dim1=1, dim2=2) == 0).all(1).double().sum()[None]
        return {"matrices": heard(x.double()).sum(0), "n": n, "bare": bare}

    def settle(self, sums: Mapping[str, Tensor], number: int) -> None:
        """G^-1/2 of the mean G over all training samples."""
        if sums["bare"].any():
            raise ValueError(
                'a tangent space is made of correlations; data.measure = "ledoit-wolf"'
            )
        if sums["n"] < 1 or not sums["matrices"].isfinite().all():
            raise ValueError("no matrices have such sums")
        self.whitening.copy_(through(sums["matrices"] / sums["n"], torch.rsqrt))


def heard(x_BRR: Tensor) -> Tensor:
    """The same with variance 1 of regions without a signal: they then are apart from all others."""
    silent = (torch.diagonal(x_BRR, dim1=1, dim2=2) == 0).to(x_BRR.dtype)
    return x_BRR + torch.diag_embed(silent)


def through(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of symmetric positive definite matrices, by their eigenvalues."""
    values, vectors = torch.linalg.eigh((x + x.mT).double() / 2)
    found: Tensor = vectors * function(values.clamp(min=_LEAST))[..., None, :] @ vectors.mT
    return found
