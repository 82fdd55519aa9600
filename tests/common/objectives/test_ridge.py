"""Heads settled from sums, beside scikit-learn's models of all rows in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as PooledRidge
from sklearn.preprocessing import KernelCenterer
from torch import Tensor

from common.backbones.linear import Linear
from common.errors import Refusal
from common.network.building import build, plan_of
from common.network.settling import passes, refuse_unsound, settle, settling, sums_of
from common.objectives.ridge import Ridge
from common.seams import FROZEN
from common.sections import Target
from common.study import parse_study
from tests.conftest import FEATURES

COLUMNS = 6
DIAGONAL = np.cumsum([0, *range(COLUMNS + 1, 1, -1)])  # of a packed triangle
TARGETS = {
    "age": Target(kind="regression", transform="log", low=1.0, high=200.0, centre=30.0, scale=0.4),
    "sex": Target(kind="binary", classes=("female", "male")),
    "state": Target(kind="categorical", classes=("rest", "left", "right")),
}
Sites = list[tuple[Tensor, dict[str, Tensor]]]


def sites(sizes: tuple[int, ...] = (40, 70, 25)) -> Sites:
    """Columns in units of their own; some people have no sex that is known."""
    random = np.random.default_rng(0)
    slopes = random.normal(size=COLUMNS)
    found = []
    for number, n in enumerate(sizes):
        x = random.normal(5.0 + number, 3.0, (n, COLUMNS))
        signal = (x - 5.0) @ slopes / 3.0
        labels = {
            "age": np.exp(3.4 + 0.1 * signal + 0.1 * random.normal(size=n)),
            "sex": (random.random(n) < 1 / (1 + np.exp(-signal))).astype(float),
            "state": np.argmax(x[:, :3] + random.normal(size=(n, 3)), axis=1).astype(float),
        }
        labels["sex"][:3] = np.nan
        told = {name: torch.from_numpy(label).float() for name, label in labels.items()}
        found.append((torch.from_numpy(x).float(), told))
    return found


def network(**keys: Any) -> Ridge:
    backbone = Linear(Linear.Settings(name="linear"), (COLUMNS,), "average")
    return Ridge(Ridge.Settings(name="ridge", **keys), backbone, TARGETS).eval()


def settled(network: Ridge, held: Sites) -> Ridge:
    """As sites and coordinator do it: one site's sums after the other's, pass by pass."""
    modules, number = settling(network), 0
    while number < passes(modules):
        parts = [
            {name: value.numpy() for name, value in sums_of(modules, x, labels, number).items()}
            for x, labels in held
        ]
        for part in parts:
            refuse_unsound(modules, part, number)
        settle(modules, parts, number)
        number += 1
    return network


def together(held: Sites, name: str) -> tuple[Tensor, Any, Any]:
    """All columns, those of whom the label is known, and the site of each."""
    x = torch.cat([x for x, _ in held])
    label = torch.cat([labels[name] for _, labels in held])
    whose = np.repeat(np.arange(len(held)), [len(x) for x, _ in held])
    known = ~torch.isnan(label)
    return x[known], label[known].double().numpy(), whose[known.numpy()]


def standardised(net: Ridge, x: Tensor, weights: Any) -> Any:
    u = net.features(x).numpy()
    mean = np.average(u, axis=0, weights=weights)
    return (u - mean) / np.sqrt(np.average(np.square(u - mean), axis=0, weights=weights))


def weights_of(whose: Any, exponent: float) -> Any:
    return np.array([float((whose == one).sum()) ** -exponent for one in whose])


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_numbers_are_predicted_as_by_pooled_ridge(exponent: float) -> None:
    """The federated model is the pooled one, to the last digits: nothing is lost by staying."""
    held = sites()
    net = settled(network(site_weights=[exponent]), held)
    x, age, whose = together(held, "age")
    penalty, weights = float(net.heads.chosen_age[0]), weights_of(whose, exponent)
    u, z = standardised(net, x, weights), (np.log(age) - np.log(30.0)) / 0.4
    oracle = PooledRidge(alpha=penalty * weights.sum()).fit(u, z, sample_weight=weights)
    wanted = np.exp(oracle.predict(u) * 0.4 + np.log(30.0))
    assert np.abs(net.predict(x)["age"].numpy() - wanted).max() < 1e-8


@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_classes_are_predicted_as_by_pooled_logistic_regression(exponent: float) -> None:
    """Newton's steps over sums end where an optimiser over rows ends."""
    held = sites()
    net = settled(network(site_weights=[exponent], steps=20), held)
    x, sex, whose = together(held, "sex")
    penalty, weights = float(net.heads.chosen_sex[0]), weights_of(whose, exponent)
    u = standardised(net, x, weights)
    model = LogisticRegression(C=4 / (penalty * weights.sum()), tol=1e-12, max_iter=10_000)
    wanted = model.fit(u, sex, sample_weight=weights).predict_proba(u)[:, 1]
    assert np.abs(net.predict(x)["sex"].numpy() - wanted).max() < 1e-6


def test_no_step_is_asked_for_once_none_moves_anything() -> None:
    """Each step is an exchange with every hospital."""
    net = network(steps=40)
    assert net.heads.passes == 2 + 40 - 0
    settled(net, sites())
    assert net.heads._still == set(TARGETS)
    x, state, _ = together(sites(), "state")
    said = net.predict(x)["state"]
    assert torch.allclose(said.sum(1), torch.ones(len(x), dtype=said.dtype))
    assert (said.argmax(1).numpy() == state).mean() > 0.7


def test_classes_that_columns_tell_apart_wholly_end_in_numbers() -> None:
    """Without a penalty to speak of the best slope is infinite, and Newton's step too long."""
    held = sites()
    for x, labels in held:
        labels["sex"] = (x[:, 0] > 6).float()
    net = settled(network(penalties=[1e-9], steps=12), held)
    x, sex, _ = together(held, "sex")
    said = net.predict(x)["sex"].numpy()
    assert np.isfinite(said).all()
    assert ((said > 0.5) == sex).mean() > 0.98


def test_a_target_that_nobody_labels_says_its_centre() -> None:
    """A hospital without ages must not keep the others from learning sex."""
    held = sites()
    for _, labels in held:
        labels["age"][:] = float("nan")
    net = settled(network(), held)
    assert torch.allclose(net.predict(held[0][0])["age"], torch.tensor(30.0).double())
    assert net.heads.coefficients_sex.abs().max() > 0


def test_a_site_without_a_target_changes_nothing_of_it() -> None:
    """Its sums are zeros, and zeros add nothing."""
    held, more = sites(), sites()
    more.append((held[0][0] + 40.0, {name: torch.full((40,), torch.nan) for name in TARGETS}))
    # the columns are standardised by everyone; so look behind that
    one, other = network(), network()
    for net, of in ((one, held), (other, more)):
        parts = [
            {n: v.numpy() for n, v in sums_of({"heads": net.heads}, x, labels, 1).items()}
            for x, labels in of
        ]
        settle({"heads": net.heads}, parts, 1)
    assert torch.equal(one.heads.coefficients_age, other.heads.coefficients_age)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("heads/n_age", lambda a: a + 1),
        ("heads/gram_age", lambda a: a * np.where(np.arange(a.size) == 8, 1e6, 1.0)),
        ("heads/gram_age", lambda a: -a),
        ("heads/squares_age", lambda a: -a),
        ("heads/cross_age", lambda a: a * 1e3),
        (
            "heads/gram_age",
            lambda a: np.where(np.isin(np.arange(a.size), DIAGONAL), a, -0.9 * a[0]),
        ),
    ],
)
def test_sums_that_no_samples_have_are_refused(name: str, spoil: Any) -> None:
    """One site must not spoil everybody's heads by numbers that cannot be."""
    net, (x, labels) = network(), sites()[0]
    modules = settling(net)
    settle(modules, [{n: v.numpy() for n, v in sums_of(modules, x, labels, 0).items()}], 0)
    sums = {n: v.numpy() for n, v in sums_of(modules, x, labels, 1).items()}
    refuse_unsound(modules, sums, 1)
    with pytest.raises(Refusal):
        refuse_unsound(modules, {**sums, name: spoil(sums[name])}, 1)


def test_random_features_bend_what_is_straight() -> None:
    """Age against a square: a line tells nothing of it, cosines do."""
    random = np.random.default_rng(3)
    x = torch.from_numpy(random.normal(size=(400, COLUMNS))).float()
    labels = {"age": 30.0 * torch.exp(0.3 * (x[:, 0].square() - 1))}
    held = [
        (x[:200], dict.fromkeys(("age",), labels["age"][:200])),
        (x[200:], {"age": labels["age"][200:]}),
    ]
    errors = []
    for number in (0, 300):
        backbone = Linear(Linear.Settings(name="linear"), (COLUMNS,), "average")
        settings = Ridge.Settings(name="ridge", random_features=number)
        torch.manual_seed(0)
        net = settled(Ridge(settings, backbone, {"age": TARGETS["age"]}).eval(), held)
        errors.append(float((net.predict(x)["age"] - labels["age"]).abs().mean()))
    assert errors[1] < errors[0] / 2


@pytest.mark.whole
def test_cosines_beside_columns_come_near_to_a_kernel_of_both() -> None:
    """scikit-learn's kernel ridge, of the kernel that the docstring names, on all rows."""
    random = np.random.default_rng(5)
    x = random.normal(size=(150, COLUMNS))
    u = (x - x.mean(0)) / x.std(0)
    z = np.sin(2 * u[:, :1]) + 0.5 * u[:, 1:2] + 0.1 * random.normal(size=(150, 1))
    target = Target(kind="regression", centre=0.0)
    settings = Ridge.Settings(
        name="ridge", random_features=3000, width=0.5, penalties=(0.03,), site_weights=(0.0,)
    )
    backbone = Linear(Linear.Settings(name="linear"), (COLUMNS,), "average")
    torch.manual_seed(0)
    held = [(torch.from_numpy(x).float(), {"age": torch.from_numpy(z[:, 0]).float()})]
    net = settled(Ridge(settings, backbone, {"age": target}).eval(), held)
    between = np.square(u[:, None] - u[None]).sum(2)
    kernel = u @ u.T + COLUMNS * np.exp(-between / (4 * COLUMNS * 0.5**2))
    centred = KernelCenterer().fit_transform(kernel)
    oracle = KernelRidge(alpha=0.03 * 150, kernel="precomputed").fit(centred, z - z.mean())
    told = net.predict(held[0][0])["age"].numpy() - z.mean()
    apart = np.square(told - oracle.predict(centred)[:, 0]).mean() ** 0.5
    assert apart < 0.05 * z.std()
    line = np.linalg.lstsq(np.c_[np.ones(150), u], z, rcond=None)
    assert np.abs(told - (np.c_[np.ones(150), u] @ line[0])[:, 0] + z.mean()).max() > z.std() / 2


def test_nothing_of_it_is_trained_in_rounds() -> None:
    """Every array is the coordinator's: a round would have nothing to send back."""
    tables = {
        **FEATURES,
        "backbone": {"name": "linear"},
        "objective": {"name": "ridge", "targets": ["age", "sex"]},
        "pretraining": {"rounds": 0},
    }
    net = build(parse_study(tables, Path("ridge.toml")), seed=1)
    assert {rule.group for rule in plan_of(net, "average").values()} == {FROZEN}
    assert not [parameter for parameter in net.parameters() if parameter.requires_grad]
    held = net.terms(
        torch.zeros(3, 4), {n: torch.tensor([1.0, torch.nan, 0.0]) for n in ("age", "sex")}
    )
    assert held["sex"].counted.tolist() == [True, False, True]
    assert torch.isfinite(held["age"].values).all()
