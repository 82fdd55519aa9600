"""ComBat's shared half, from sums: what columns are like where no site has a say in them.

ComBat (Johnson et al. 2007; distributed: Chen et al. 2022) takes a column for

    x = mean + (c - centre)'slopes + residual (location_s + sqrt(scale_s) e),

c a person's covariates, which protect what they explain from being taken for the site. Mean,
slopes and residual deviation are the network's constants: the pooled regression on covariates and
a dummy of each site, by normal equations of sums. Location and scale are a site's own; they follow
from its own rows and these constants (`common.empirical_bayes`), so they never leave it. Samples
are adjusted beside the data, before a network sees them (`client.learning.harmonisation`).

Letters in shapes: B samples, F columns, C covariates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

_FLAT: Final = (
    1e-6  # of its mean: a column, or of its size: a covariate, that varies less is constant
)
_SLACK: Final = 1 + 1e-9

Harmonisation = Annotated[
    Literal["none", "combat"],
    Field(
        description="combat: training sites take their own location and scale off each column, "
        "by constants made of their sums; sites that judge are left as they are, or calibrated "
        "(`evaluation.calibration`)."
    ),
]
Covariates = Annotated[
    tuple[str, ...],
    Field(
        description="Targets, numbers or of two classes, whose effect on columns combat protects; "
        "of training people alone. Who lacks one is in none of its sums.",
        max_length=20,
    ),
]


def columns_of(x: Tensor) -> Tensor:
    """(B, F) as it is; of (B, R, R) what stands above the diagonal, row by row."""
    if x.dim() == 2:
        return x
    rows, columns = torch.triu_indices(x.shape[1], x.shape[2], 1, device=x.device)
    return x[:, rows, columns]


class Combat(nn.Module):
    """Samples to their columns (B, F), unchanged; and the constants that sites adjust them by.

    Buffers, float64: `mean`, `deviation`, `residual` (F,), the last 0 where a column is left alone
    because it does not vary; `slopes` (C, F); `centre` (C,), the covariates' mean.
    """

    passes = 1
    passes_relevance = True
    mean: Tensor
    deviation: Tensor
    residual: Tensor
    slopes: Tensor
    centre: Tensor

    def __init__(self, columns: int, covariates: Sequence[str]) -> None:
        super().__init__()
        self.covariates = tuple(covariates)
        number = len(self.covariates)
        for name, shape in (
            ("mean", (columns,)),
            ("deviation", (columns,)),
            ("residual", (columns,)),  # until it is settled, all columns are left alone
            ("slopes", (number, columns)),
            ("centre", (number,)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return columns_of(x)

    def labelled(self, key: str) -> tuple[str, ...]:
        """The targets of which a person needs all labels to be in a sum."""
        return self.covariates

    def sums(self, x: Tensor, labels: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Sums of columns, covariates and their products, over who has all covariates."""
        c = torch.stack([labels[name] for name in self.covariates], 1).double() if (
            self.covariates
        ) else x.new_zeros((len(x), 0), dtype=torch.float64)  # fmt: skip
        known = ~c.isnan().any(1)
        c, wide = c[known], columns_of(x)[known].double()
        n = torch.tensor([float(len(wide))], dtype=torch.float64, device=x.device)
        found = {"sum": wide.sum(0), "squares": wide.square().sum(0), "n": n}
        if self.covariates:
            found |= {"covariates": c.sum(0), "products": c.T @ c, "crosses": c.T @ wide}
        return found

    def settle(self, sums: Mapping[str, Tensor], number: int) -> None:
        """The same of one site."""
        self.settle_by_site([sums], number)

    def settle_by_site(self, sites: Sequence[Mapping[str, Tensor]], number: int) -> None:
        """Pooled regression on covariates and a dummy of each site, taken off first."""
        n, total, squares = 0.0, torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        within, about = torch.zeros_like(self.mean), torch.zeros_like(self.centre)
        products = torch.zeros((len(about), len(about)), dtype=torch.float64)
        sizes, crosses = torch.zeros_like(about), torch.zeros_like(self.slopes)
        for site in map(self._sound, sites):
            k = float(site["n"])
            if not k:
                continue
            mean, centre = site["sum"] / k, site["covariates"] / k
            n, total, squares = n + k, total + site["sum"], squares + site["squares"]
            within += site["squares"] - k * mean.square()
            about += site["covariates"]
            products += site["products"] - k * torch.outer(centre, centre)
            sizes += site["products"].diagonal()
            crosses += site["crosses"] - k * torch.outer(centre, mean)
        if not n:
            raise ValueError(f"nobody has all of {', '.join(self.covariates)}")
        slopes = _solved(products, sizes, crosses)
        left = (within - (slopes * crosses).sum(0)).clamp(min=0) / n
        mean = total / n
        self.mean.copy_(mean)
        self.deviation.copy_((squares / n - mean.square()).clamp(min=0).sqrt())
        flat = left.sqrt() <= _FLAT * mean.abs().clamp(min=1e-12)
        self.residual.copy_(torch.where(flat, 0.0, left.sqrt()))
        self.slopes.copy_(slopes)
        self.centre.copy_(about / n)

    def _sound(self, site: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One site's sums, with those of no covariates; `ValueError` for any that no rows have."""
        nothing = {"covariates": self.centre, "products": self.slopes @ self.slopes.T,
                   "crosses": self.slopes}  # fmt: skip
        found = {**({} if self.covariates else nothing), **site}
        n, sizes = found["n"], found["products"].diagonal()
        parts: list[tuple[Any, Any]] = [  # no product of two columns is larger than both
            (found["sum"].square(), n * found["squares"]),
            (found["covariates"].square(), n * sizes),
            (found["products"].square(), torch.outer(sizes, sizes)),
            (found["crosses"].square(), torch.outer(sizes, found["squares"])),
        ]
        if n < 0 or (sizes < 0).any() or not all((a <= b * _SLACK).all() for a, b in parts):
            raise ValueError("no rows have such sums")
        return found


def harmonised_by(harmonisation: str, covariates: Sequence[str], columns: int) -> Combat | None:
    """What a backbone's columns are harmonised by, if its settings ask for it."""
    if harmonisation == "combat":
        return Combat(columns, covariates)
    if covariates:
        raise ValueError(
            f"covariates lists {', '.join(covariates)}, which harmonisation protects, and that is "
            '"none"'
        )
    return None


def _solved(products: Tensor, sizes: Tensor, crosses: Tensor) -> Tensor:
    """(C, F) slopes; 0 of a covariate that does not vary within any site."""
    spread = torch.where(products.diagonal() > _FLAT**2 * sizes, products.diagonal(), torch.inf)
    scaled = spread.sqrt()
    correlation = products / torch.outer(scaled, scaled)
    found: Tensor = torch.linalg.pinv(correlation, hermitian=True, rtol=1e-10)
    return (found @ (crosses / scaled[:, None])) / scaled[:, None]
