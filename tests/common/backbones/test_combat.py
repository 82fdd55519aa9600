"""ComBat from sites' sums, beside ComBat of all rows in one table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.learning.harmonisation import Constants
from common.backbones.combat import Combat
from common.backbones.linear import Linear
from common.empirical_bayes import effects_of
from common.errors import Refusal
from common.network.settling import refuse_unsound, settle, sums_of

Floats = NDArray[np.float64]
SIZES = (9, 14, 7)

# neuroCombat 0.2.12 on `rows()`, iterated to its end: location and scale of three sites, and the
# adjusted rows 0, 10 and 29
LOCATION = [
    [0.3179274798962595, -0.6259416953498727, 0.301764369875121, 0.018860873715622332],
    [-0.42066804177992556, -0.00903844877946679, 0.007173472699523862, -0.15435954411312208],
    [0.472836628562422, 0.6491212132268054, -0.2845118507485939, 0.2882242625105524],
]
SCALE = [
    [0.8918054678046237, 0.8367845108004494, 0.7672918878772544, 0.812840235897811],
    [0.6955253508332646, 0.8046876728144454, 0.7431634236692578, 0.7894521690022894],
    [2.181131884949399, 2.1408095619150442, 2.221958435037065, 2.151956369143098],
]
ADJUSTED = [
    [4.278682741421033, 0.19355160942612848, 2.1028990956631324, 10.329377865185924],
    [8.547882405884813, -1.2109771753189023, 2.927019372337722, 9.725613595681095],
    [8.187524121974588, -1.265108576566381, 4.613549162504401, 8.660384067755174],
]


def rows() -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Columns (30, 4), age and sex (30, 2), and the site of each."""
    random, n = np.random.default_rng(8), sum(SIZES)
    site = np.repeat(np.arange(len(SIZES)), SIZES)
    age = np.round(random.normal(50, 10, n) + 5 * site, 2).astype(np.float32)
    sex = (random.random(n) < 0.5).astype(int)
    noise = random.normal(size=(n, 4)) * [1, 2, 0.5, 3] * (1 + 0.3 * site[:, None])
    far = site[:, None] * [0.5, 1, 0, -2]
    x = np.round(noise + [3, -1, 0, 10] + 0.05 * age[:, None] + far + 0.4 * sex[:, None], 4)
    return x.astype(np.float32).astype(float), np.stack([age, sex], 1).astype(float), site


def settled(x: Floats, c: Floats, site: Any, names: tuple[str, ...] = ("age", "sex")) -> Combat:
    """The constants of all sites' sums, each checked as a coordinator does."""
    module = Combat(x.shape[1], names)
    parts = []
    for one in np.unique(site):
        labels = {name: torch.from_numpy(c[site == one, i]) for i, name in enumerate(names)}
        told = sums_of({"it": module}, torch.from_numpy(x[site == one]), labels, 0)
        parts.append({name: value.numpy() for name, value in told.items()})
        refuse_unsound({"it": module}, parts[-1], 0)
    settle({"it": module}, parts, 0)
    return module


def constants(module: Combat) -> Constants:
    held = {
        name: getattr(module, name).numpy() for name in ("mean", "residual", "slopes", "centre")
    }
    return Constants(**held, covariates=module.covariates)


def test_sums_give_what_neurocombat_gives_of_all_rows() -> None:
    """Federated ComBat that is another than the published one could not be compared with any."""
    x, c, site = rows()
    found = constants(settled(x, c, site))
    adjusted = np.empty_like(x)
    for one in range(len(SIZES)):
        here = site == one
        own = found.effects(x[here], c[here])
        np.testing.assert_allclose(own.location, LOCATION[one], rtol=1e-8)
        np.testing.assert_allclose(own.scale, SCALE[one], rtol=1e-8)
        # what its rows have besides, of labels that a network must not see
        more = (c[here] - found.centre) @ found.slopes * (1 - 1 / np.sqrt(own.scale))
        adjusted[here] = found.adjusted(x[here], own) + more
    np.testing.assert_allclose(adjusted[[0, 10, 29]], ADJUSTED, rtol=1e-8)


@pytest.mark.parametrize("names", [(), ("age",), ("age", "sex")])
def test_the_pooled_regression_needs_no_rows(names: tuple[str, ...]) -> None:
    """Slopes, means and residual deviations are those of one design with a dummy for each site."""
    x, c, site = rows()
    x = x * 1e3 + 1e5  # volumes: sums of squares far larger than what varies
    c = c[:, : len(names)]
    module = settled(x, c, site, names)
    design = np.concatenate([np.eye(len(SIZES))[site], c - c.mean(0)], axis=1)
    fitted, *_ = np.linalg.lstsq(design, x, rcond=None)
    grand = np.average(fitted[: len(SIZES)], axis=0, weights=SIZES)
    np.testing.assert_allclose(module.slopes, fitted[len(SIZES) :], rtol=1e-8)
    np.testing.assert_allclose(module.mean, grand, rtol=1e-8)
    residual = np.sqrt(np.square(x - design @ fitted).mean(0))
    np.testing.assert_allclose(module.residual, residual, rtol=1e-8)


def test_columns_and_covariates_that_do_not_vary_are_left_alone() -> None:
    """Zeros of a pipeline that did not measure would be divided by nothing."""
    x, c, site = rows()
    x[:, 2], c[:, 1] = 7.0, 1.0
    found = constants(settled(x, c, site))
    assert found.residual[2] == 0
    assert not found.slopes[1].any()
    own = found.effects(x[site == 0], c[site == 0])
    assert (own.location[2], own.scale[2]) == (0, 1)
    assert (found.adjusted(x[site == 0], own)[:, 2] == 7.0).all()


def test_whoever_lacks_a_covariate_is_in_no_sum() -> None:
    """A person whose age is unknown has no expected thickness to be compared with."""
    x, c, site = rows()
    without = c.copy()
    without[[3, 20], 0] = np.nan
    kept = np.isfinite(without).all(1)
    one, other = settled(x, without, site), settled(x[kept], c[kept], site[kept])
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(dict(one.named_buffers())[name], buffer)


def test_shrinking_vanishes_with_people_and_is_whole_without() -> None:
    """The limits of a posterior: what many say stands, what two say is their other columns'."""
    random = np.random.default_rng(1)
    mean, variance = random.normal(size=50), random.uniform(0.5, 2.0, 50)
    many, few = effects_of(10**7, mean, variance), effects_of(2, mean / 100, variance)
    np.testing.assert_allclose(many.location, mean, atol=1e-5)
    np.testing.assert_allclose(many.scale, variance, rtol=1e-5)
    assert few.location.std() < mean.std() / 100 / 10
    alike = effects_of(5, np.full(3, 0.4), np.full(3, 1.5))
    np.testing.assert_allclose(alike.location, 0.4)
    np.testing.assert_allclose(alike.scale, 1.5, rtol=1e-6)
    single = effects_of(5, mean[:1], variance[:1])
    assert (single.location, single.scale) == (mean[:1], variance[:1])


@pytest.mark.parametrize(
    ("key", "value"), [("crosses", 1e9), ("products", -1.0), ("squares", 0.0), ("n", -3.0)]
)
def test_sums_that_no_rows_have_are_refused(key: str, value: float) -> None:
    """One site that invents a slope would bend everybody's columns."""
    x, c, _ = rows()
    module = Combat(4, ("age", "sex"))
    labels = {name: torch.from_numpy(c[:, i]) for i, name in enumerate(("age", "sex"))}
    told = sums_of({"it": module}, torch.from_numpy(x), labels, 0)
    sums = {name: value.numpy().copy() for name, value in told.items()}
    refuse_unsound({"it": module}, sums, 0)
    sums[f"it/{key}"].flat[0] = value
    with pytest.raises(Refusal, match="no rows have such sums"):
        refuse_unsound({"it": module}, sums, 0)


@pytest.mark.parametrize(
    ("keys", "shape"),
    [
        ({"covariates": ("age",)}, (4,)),
        ({"space": "tangent", "harmonisation": "combat"}, (4, 4)),
    ],
)
def test_covariates_and_tangent_spaces_go_with_nothing_else(keys: Any, shape: Any) -> None:
    """A covariate that nothing protects, and a space that ComBat is not of, are mistakes."""
    with pytest.raises(ValueError, match="harmonisation"):
        Linear(Linear.Settings(name="linear", **keys), shape, "average")
