"""Guessing who was trained on: as well as can be where models tell, and by luck where not."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from common.sections import Target
from deploy.audit.membership import (
    ALARMS,
    area,
    attacked,
    calibrated,
    likelihoods,
    losses,
    ratios,
)
from deploy.audit.shadows import Shadows

AGE = Target(kind="regression", unit="years")
SEX = Target(kind="binary", classes=("female", "male"), weight=0.5)
EVERYONE = np.ones(200, dtype=bool)


def made(pull: float, *, shadows: int = 40, spread: float = 3.0, targets=(AGE,)) -> Shadows:
    """Models that say of a person something of hers, and `pull` less where she was in."""
    chance = np.random.default_rng(6)
    inside = chance.random((shadows, 200)) < 0.5
    own = spread * chance.normal(size=(200, len(targets)))
    said = own + chance.normal(size=(shadows, 200, len(targets))) - pull * inside[..., None]
    return Shadows(
        targets=targets, said=said, inside=inside, canaries=np.zeros(200, bool),
        epsilon=np.zeros(shadows),
    )  # fmt: skip


def test_the_ratio_attack_is_as_good_as_can_be() -> None:
    """Two normal densities `pull` deviations apart: an AUC of Phi(pull / root 2), nearly."""
    found = attacked(likelihoods(made(1.0)), made(1.0), EVERYONE, 0.95, 0.95)
    assert found.auc.value == pytest.approx(stats.norm.cdf(1 / sqrt(2)), abs=0.02)
    assert found.auc.low < found.auc.value < found.auc.high
    best = [1 - stats.norm.cdf(stats.norm.ppf(1 - rate) - 1) for rate in ALARMS]
    assert [found.hits[rate].value for rate in ALARMS] == pytest.approx(best, abs=0.05)
    assert 0.3 < found.epsilon < 3
    assert found.n == 40 * 200


def test_a_threshold_on_the_loss_knows_nobody_from_another() -> None:
    """What is hard to tell of somebody says more of her than of whether she was in."""
    shadows = made(1.0)
    simple = attacked(losses(shadows), shadows, EVERYONE, 0.95, 0.95)
    ratio = attacked(likelihoods(shadows), shadows, EVERYONE, 0.95, 0.95)
    assert simple.auc.value < ratio.auc.value - 0.15


def test_a_loss_beside_other_models_needs_few_shadows() -> None:
    """Means with and without each person are of three models each here; one mean is of seven.

    Everybody's prediction comes a little nearer to her label where she was in.
    """
    shadows = made(0.0, shadows=8)
    nearer = np.sign(shadows.said) * 0.5 * shadows.inside[..., None]
    shadows = replace(shadows, said=shadows.said - nearer)
    ratio = attacked(likelihoods(shadows), shadows, EVERYONE, 0.95, 0.95)
    simple = attacked(calibrated(shadows), shadows, EVERYONE, 0.95, 0.95)
    plain = attacked(losses(shadows), shadows, EVERYONE, 0.95, 0.95)
    assert simple.auc.low > 0.5
    assert simple.auc.value > max(ratio.auc.value, plain.auc.value) + 0.015
    turned = shadows.inside.copy()
    turned[3] = ~turned[3]
    assert (calibrated(replace(shadows, inside=turned)) == calibrated(shadows)).all()


def test_models_that_tell_nothing_are_guessed_by_luck() -> None:
    """An interval with one half in it, and no epsilon."""
    shadows = made(0.0)
    for scores in (likelihoods(shadows), losses(shadows), calibrated(shadows)):
        found = attacked(scores, shadows, EVERYONE, 0.95, 0.95)
        assert found.auc.low < 0.5 < found.auc.high
        assert found.epsilon < 0.1


def test_a_shadow_is_attacked_by_the_others_alone() -> None:
    """Who was in it must not be asked: the bound rests on coins that the attacker never saw."""
    shadows = made(1.0)
    turned = shadows.inside.copy()
    turned[7] = ~turned[7]
    other = likelihoods(replace(shadows, inside=turned))
    before = likelihoods(shadows)
    assert (other[7] == before[7]).all()
    assert not np.allclose(other[6], before[6])


def test_people_whom_no_other_shadow_had_tell_nothing() -> None:
    """A mean needs somebody; a person without any label needs none."""
    shadows = made(1.0)
    inside, said = shadows.inside.copy(), shadows.said.copy()
    inside[:, 3], said[:, 4] = False, np.nan
    scores = likelihoods(replace(shadows, inside=inside, said=said))
    assert (scores[:, 3:5] == 0).all()
    assert np.isfinite(scores).all()


def test_targets_add_up() -> None:
    """Two that tell a little tell more together."""
    one, both = made(0.7), made(0.7, targets=(AGE, SEX))
    assert (
        attacked(likelihoods(both), both, EVERYONE, 0.95, 0.95).auc.value
        > attacked(likelihoods(one), one, EVERYONE, 0.95, 0.95).auc.value + 0.05
    )


def test_losses_are_those_of_the_targets() -> None:
    """Half the square of an error in deviations; cross-entropy of the true class's log-odds."""
    shadows = made(0.0, shadows=1, targets=(AGE, SEX))
    shadows.said[0, 0] = [2.0, 0.0]
    shadows.said[0, 1] = [np.nan, 50.0]
    assert losses(shadows)[0, :2] == pytest.approx([-(2.0 + 0.5 * np.log(2)), 0.0])


def test_one_model_is_attacked_by_all_shadows() -> None:
    """The finished model has no coin of its own; its people are known to the auditor."""
    shadows = made(1.0)
    finished = replace(shadows, said=shadows.said[1:], inside=shadows.inside[1:])
    scores = ratios(finished, shadows.said[0], np.ones(39, bool))
    found = area(scores, shadows.inside[0], 0.95)
    assert found.low < stats.norm.cdf(1 / sqrt(2)) < found.high
    assert found.value == pytest.approx(
        stats.mannwhitneyu(scores[shadows.inside[0]], scores[~shadows.inside[0]]).statistic
        / (shadows.inside[0].sum() * (~shadows.inside[0]).sum())
    )
