"""One person made again from her gradient: wholly without privacy, not at all with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.learning.training import Recipe
from common.errors import SettingError
from common.network.building import arrays_of, build
from common.privacy.settings import Privacy
from common.study import Study, parse_study
from deploy.audit.inversion import Scene, inverted, inverted_round, scene
from tests.client.learning.privacy.people import cohort_of
from tests.conftest import BRAINS, FEATURES, overridden

PRIVATE = Privacy(unit="participant", noise=1.0, clip=1.0, people_per_step=1000)
TABLES = {
    "name": "rows", "data.columns": [f"column-{n}" for n in range(20)],
    "aggregation.normalisation": "groupnorm", "objective.targets": ["age"],
}  # fmt: skip


def scene_of(base: dict[str, Any], changes: dict[str, Any], people: int = 12) -> Scene:
    study: Study = parse_study(overridden(base, changes), Path("study.toml"))
    network = build(study, seed=1)
    arrays = arrays_of(network)
    chance = np.random.default_rng(2)
    arrays = {  # heads begin at 0, and say nothing before they have learnt
        name: array + 0.1 * chance.normal(size=array.shape).astype(np.float32)
        if name.startswith("heads.")
        else array
        for name, array in arrays.items()
    }
    return scene(study, cohort_of(study.shape, [1] * people, missing=False), arrays)


@pytest.fixture(scope="module")
def linear() -> Scene:
    return scene_of(FEATURES, {**TABLES, "backbone": {"name": "linear"}})


@pytest.mark.parametrize("whom", [0, 5])
def test_a_rows_gradient_in_a_linear_network_is_the_row(linear: Scene, whom: int) -> None:
    """Nothing is left to guess: the gradient of a head is its error times the columns."""
    assert inverted(linear, whom, None, 0) < 0.02


def test_a_perceptron_gives_most_of_a_row_away() -> None:
    """Its first layer's gradient is the row times something for each unit that fired."""
    mlp = scene_of(FEATURES, {**TABLES, "backbone": {"name": "mlp", "hidden": [16]}})
    assert inverted(mlp, 0, None, 0) < 0.5


def test_noise_hides_the_row(linear: Scene) -> None:
    """The likeliest sample is then hardly better than the mean of the data."""
    errors = [inverted(linear, whom, PRIVATE, 0) for whom in range(6)]
    assert np.median(errors) > 0.8


def test_cutting_down_alone_hides_nothing(linear: Scene) -> None:
    """The vanishing limit: the attacker who knows the clip knows the length."""
    privacy = PRIVATE.model_copy(update={"noise": 0.0, "epsilon": 0.0, "clip": 1e6})
    assert inverted(linear, 0, privacy, 0) < 0.05


def test_a_round_of_many_people_gives_nobody_away(linear: Scene) -> None:
    """Whoever of them is nearest is told no better than by the mean; with privacy neither."""
    steps = linear.study.pretraining
    recipe = Recipe(steps=steps, rate=0.01, weight_decay=0.0, epochs=2, of=2, seed=0)
    for privacy in (None, PRIVATE):
        assert inverted_round(linear, 0, privacy, recipe, 0) > 0.6


SMALL: dict[str, dict[str, Any]] = {
    "sfcn": {"name": "sfcn", "channels": [4], "top": 4, "dropout": 0.0},
    "vit": {"name": "vit", "patch": 4, "width": 12, "depth": 1, "heads": 2, "feed_forward": 8},
}


@pytest.mark.parametrize("name", SMALL)
def test_volumes_are_attacked_through_convolutions_and_attention(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's fast attention has no second derivative; noise leaves nothing but the mean."""
    monkeypatch.setattr("deploy.audit.inversion.STEPS", 20)
    changes = {
        "data.shape": [8, 8, 8], "aggregation.normalisation": "groupnorm",
        "pretraining.warmup": 0.1, "backbone": SMALL[name],
    }  # fmt: skip
    brain = scene_of(BRAINS, changes, people=6)
    assert 0 < inverted(brain, 0, None, 0) < 3
    assert inverted(brain, 0, PRIVATE, 0) == pytest.approx(1.0, abs=0.2)


def test_a_network_without_a_second_derivative_says_so(
    linear: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recurrent layers of some devices have none: that is no defence, and no traceback."""

    def nothing(*_: object) -> None:
        raise RuntimeError("derivative for aten::_some_backward is not implemented")

    monkeypatch.setattr("torch.optim.LBFGS.step", nothing)
    with pytest.raises(SettingError, match="no second derivative"):
        inverted(linear, 0, None, 0)
