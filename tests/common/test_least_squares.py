"""Ridge regression from sums, beside scikit-learn's on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

from common.least_squares import Path, Products, chosen, packed, unpacked

PENALTIES = (0.01, 0.1, 1.0, 10.0)


def site(n: int, seed: int, shift: float = 0.0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    u = random.normal(shift, 2.0, (n, 5))
    z = u @ np.array([[1.0, 0.0], [-0.5, 1.0], [0.0, 0.0], [0.2, 0.3], [0.0, -1.0]])
    z += random.normal(0, noise, z.shape) + 3.0
    return torch.from_numpy(u), torch.from_numpy(z)


def products(u: Tensor, z: Tensor) -> Products:
    whole = torch.cat([torch.ones(len(u), 1, dtype=torch.float64), u], 1)
    return Products(gram=whole.T @ whole, cross=whole.T @ z, squares=z.square().sum(0))


def test_solutions_are_those_of_all_rows_in_one_table() -> None:
    """What a consortium fits from sums is what it would have fitted with everyone's rows."""
    sites = [site(30, 1), site(80, 2, shift=1.5), site(12, 3, shift=-1.0)]
    u, z = (torch.cat(part) for part in zip(*sites, strict=True))
    total = None
    for one in sites:
        total = products(*one).plus(total)
    assert total is not None
    path = Path.of(total, PENALTIES)
    scaled = ((u - u.mean(0)) / u.std(0, correction=0)).numpy()
    for number, penalty in enumerate(PENALTIES):
        oracle = Ridge(alpha=penalty * len(u)).fit(scaled, z.numpy())
        np.testing.assert_allclose(path.coefficients[number].T, oracle.coef_, atol=1e-8)
        np.testing.assert_allclose(path.intercepts, oracle.intercept_, atol=1e-8)
        for one in sites:  # the error at a site follows from its own sums
            there = ((one[0] - u.mean(0)) / u.std(0, correction=0)).numpy()
            error = np.square(oracle.predict(there) - one[1].numpy()).sum()
            told = float(path.squared_errors(products(*one))[number])
            assert told == pytest.approx(error, rel=1e-8)


def test_weights_of_sites_are_weights_of_their_rows() -> None:
    """n^-e for each row of a site is what scikit-learn calls a sample's weight."""
    sites = [site(20, 1), site(90, 2, shift=2.0)]
    weighted = [products(*one).times(len(one[0]) ** -0.5) for one in sites]
    path = Path.of(weighted[0].plus(weighted[1]), [0.3])
    u, z = (torch.cat(part).numpy() for part in zip(*sites, strict=True))
    weights = np.concatenate([np.full(n, n**-0.5) for n in (20, 90)])
    mean = np.average(u, axis=0, weights=weights)
    spread = np.sqrt(np.average(np.square(u - mean), axis=0, weights=weights))
    oracle = Ridge(alpha=0.3 * weights.sum()).fit((u - mean) / spread, z, sample_weight=weights)
    np.testing.assert_allclose(path.coefficients[0].T, oracle.coef_, atol=1e-8)


def test_features_with_a_scale_of_their_own_are_centred_alone() -> None:
    """Divided by their spread, a thousand small cosines would count like a thousand columns."""
    u, z = site(60, 4, shift=1.0)
    u[:, 3:] *= 0.01
    path = Path.of(products(u, z), PENALTIES, unscaled=2)
    scaled = (u - u.mean(0)) / u.std(0, correction=0)
    scaled[:, 3:] = (u - u.mean(0))[:, 3:]
    for number, penalty in enumerate(PENALTIES):
        oracle = Ridge(alpha=penalty * 60).fit(scaled.numpy(), z.numpy())
        np.testing.assert_allclose(path.coefficients[number].T, oracle.coef_, atol=1e-8)


def test_leaving_sites_out_finds_what_leaving_rows_out_would_miss() -> None:
    """Where each site has a slope of its own, a strong penalty is right for the next site."""
    random = np.random.default_rng(0)
    sites = []
    for number in range(8):
        u = random.normal(size=(60, 5))
        z = u @ random.normal(0, 1.0, (5, 1)) + 0.1 * random.normal(size=(60, 1))
        sites.append(products(torch.from_numpy(u), torch.from_numpy(z + number % 2)))
    assert chosen(sites, PENALTIES, (0.0,))[0] == 10.0
    alike = [products(*site(60, seed, noise=0.1)) for seed in range(8)]
    assert chosen(alike, PENALTIES, (0.0,))[0] == 0.01


def test_sites_count_alike_only_where_that_is_surely_better() -> None:
    """One large site that is unlike all others must not be what everyone is judged by; nor may one
    small one that is unlike all others choose."""
    random = np.random.default_rng(1)
    slopes = random.normal(size=(5, 1))

    def of(n: int, slope: np.ndarray) -> Products:
        u = random.normal(size=(n, 5))
        z = u @ slope + 0.3 * random.normal(size=(n, 1))
        return products(torch.from_numpy(u), torch.from_numpy(z))

    unlike_and_large = [of(600, -slopes), *(of(40, slopes) for _ in range(9))]
    assert chosen(unlike_and_large, PENALTIES, (0.0, 1.0))[1] == 1.0
    unlike_and_small = [of(15, -slopes), of(300, slopes), *(of(60, slopes) for _ in range(6))]
    assert chosen(unlike_and_small, PENALTIES, (0.0, 1.0))[1] == 0.0


@pytest.mark.parametrize("noise", [0.01, 1.0, 3.0, 10.0, 100.0])
def test_a_site_alone_chooses_by_generalised_cross_validation(noise: float) -> None:
    """No site is left out: the score is that of the rows' own hat matrix (Golub et al. 1979)."""
    u, z = site(40, 1, noise=noise)
    scaled = torch.cat([torch.ones(40, 1), (u - u.mean(0)) / u.std(0, correction=0)], 1)
    scores = []
    for penalty in PENALTIES:
        ridge = 40 * penalty * torch.diag(torch.tensor([0.0] + [1.0] * 5)).double()
        hat = scaled @ torch.linalg.solve(scaled.T @ scaled + ridge, scaled.T)
        scores.append(float((z - hat @ z).square().sum() / (40 - hat.trace()) ** 2))
    oracle = PENALTIES[int(np.argmin(scores))]
    assert chosen([products(u, z)], PENALTIES, (0.5,)) == (oracle, 0.0)
    assert noise > 0.01 or oracle == PENALTIES[0]
    assert noise < 100.0 or oracle == PENALTIES[-1]


def test_what_does_not_vary_has_no_weight() -> None:
    """A constant column has no standard deviation to be divided by."""
    u, z = site(40, 1)
    u[:, 2] = 7.0
    path = Path.of(products(u, z), PENALTIES)
    assert torch.isfinite(path.coefficients).all()
    assert path.coefficients[:, 2].abs().max() < 1e-12
    assert path.deviation[2] == torch.inf


@given(st.integers(1, 9), st.integers(0, 3))
def test_triangles_unpack_to_what_was_packed(size: int, outputs: int) -> None:
    """Half of a symmetric matrix travels."""
    random = torch.randn(outputs, size, size, dtype=torch.float64)
    squares = random + random.transpose(1, 2)
    if outputs:
        assert torch.equal(unpacked(torch.stack([packed(one) for one in squares])), squares)
    assert torch.equal(unpacked(packed(torch.eye(size))), torch.eye(size))
