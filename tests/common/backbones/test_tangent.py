"""Tangent vectors are those of the formula, seen from the training sites' mean and from nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import inv, logm, sqrtm

from common.backbones.linear import Linear
from common.network.settling import passes, settle, settling, sums_of

REGIONS = 5


def matrices(n: int, seed: int) -> Any:
    chance = np.random.default_rng(seed)
    series = chance.normal(size=(n, 40, REGIONS)) @ (np.eye(REGIONS) + 0.4)
    return torch.from_numpy(np.stack([np.corrcoef(one.T) for one in series])).float()


def made() -> Linear:
    settings = Linear.Settings(name="linear", space="tangent")
    return Linear(settings, (REGIONS, REGIONS), "average")


def settled(backbone: Linear, sites: list[Any]) -> Linear:
    """As the coordinator does it: sums of each site, pass by pass."""
    modules = settling(backbone)
    for number in range(passes(modules)):
        told = [
            {name: value.numpy() for name, value in sums_of(modules, x, {}, number).items()}
            for x in sites
        ]
        settle(modules, told, number)
    return backbone


def test_samples_are_seen_from_the_mean_of_all_training_sites() -> None:
    """An independent statement by SciPy: log(G^-1/2 C G^-1/2), then z-scored over everyone."""
    sites, judged = [matrices(12, 1), matrices(30, 2)], matrices(4, 3)
    everyone = torch.cat(sites).double().numpy()
    root = inv(sqrtm(everyone.mean(0)))
    upper = np.triu_indices(REGIONS, 1)

    def seen(x: Any) -> Any:
        return np.stack([logm(root @ one @ root)[upper] for one in x])

    known, wanted = seen(everyone), seen(judged.double().numpy())
    wanted = (wanted - known.mean(0)) / known.std(0)
    found = settled(made(), sites)(judged)
    assert found.numpy() == pytest.approx(wanted, abs=1e-3)


def test_the_reference_is_frozen_and_travels_with_the_model() -> None:
    """A judge's own matrices never move it."""
    backbone = settled(made(), [matrices(12, 1)])
    before = backbone.standardise.seen.whitening.clone()
    backbone.train()(matrices(9, 5))
    assert torch.equal(backbone.standardise.seen.whitening, before)
    assert "standardise.seen.whitening" in backbone.state_dict()


def test_a_silent_region_stands_apart_and_spoils_nothing() -> None:
    """Its row is 0, and the logarithm of 0 would reach every edge."""
    x = matrices(12, 1)
    x[3, 2] = x[3, :, 2] = 0
    assert settled(made(), [x])(x).isfinite().all()


def test_fisher_z_has_no_tangent_space() -> None:
    """Its diagonal is 0: it is told at once, in words that name the key."""
    x = matrices(12, 1)
    x.diagonal(dim1=1, dim2=2).zero_()
    with pytest.raises(ValueError, match="ledoit-wolf"):
        settled(made(), [x])
    with pytest.raises(ValueError, match="connectomes alone"):
        Linear(Linear.Settings(name="linear", space="tangent"), (5,), "average")
