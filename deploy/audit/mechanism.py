"""The mechanism attacked from the inside: canaries in real private training, every sum watched.

A canary is a participant made for the attack: her scans lie in a column of her own and her labels
far off, so that her gradient is longer than any clip, points in a direction that nobody shares, and
never turns. By a fair coin she has her labels, or has none and adds nothing; as many people are
there either way, since their number is no secret. `train_privately` trains on all of them, as at a
site: its own drawing, gradients by person, clipping, noise and steps. The attacker sees the sum
that each step releases, and of each canary how far it lies in her direction.

Canaries share no direction, so a training of m of them is m games.

Letters in shapes: T steps, M canaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.learning.privacy.training import train_privately
from client.learning.training import Recipe
from common.network.building import build
from common.privacy.accounting import epsilon
from common.privacy.cost import Cost
from common.privacy.settings import Privacy
from common.privacy.way import way_of
from common.sections import Pretraining
from common.study import Study, parse_study

Seen = NDArray[np.float64]  # (T, M), in clips
Score = Callable[[Seen, "Mechanism"], NDArray[np.float64]]

MOST_CANARIES: Final = 256  # in one training
SCANS: Final = 2  # of each canary, so that a scan that is taken for a person shows
_HEADS: Final = ("first", "second")  # two layers, so that clipping by layers has some
_FAR: Final = 1e6  # deviations that her labels are off: no step brings a prediction there
_AWAY: Final = 100.0  # of her column; networks of tables cut it to 8
_CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """Private training as one site's participants meet it: who, by which rules, how often.

    people: who may be drawn. passes: over all of them, in all orders together.
    """

    privacy: Privacy
    people: int
    passes: int
    delta: float
    steps: Pretraining = field(default_factory=Pretraining)

    @property
    def cost(self) -> Cost:
        """All of it, as accountants see it."""
        return Cost(
            noise=self.privacy.noise,
            rate=self.privacy.rate(self.people),
            steps=self.passes * self.privacy.steps(self.people),
            delta=self.delta,
        )

    @property
    def epsilon(self) -> float:
        """The accounted upper bound."""
        return epsilon([self.cost], self.delta)

    @property
    def canaries(self) -> int:
        """How many are in one training."""
        return min(self.people, MOST_CANARIES)


@dataclass(frozen=True, slots=True)
class Played:
    """Scores of M games by each way to score, and who was in."""

    scores: Mapping[str, NDArray[np.float64]]
    inside: NDArray[np.bool_]


class Arena:
    """The canaries and the network of one mechanism, for as many trainings as one likes."""

    def __init__(self, mechanism: Mechanism) -> None:
        self.mechanism = mechanism
        self._study = _study(mechanism)
        self._way = way_of(self._study)
        self._people = _people(mechanism)

    def play(self, coins: np.random.Generator) -> Played:
        """One training in which about half of the canaries are; who is, `coins` say."""
        inside = coins.random(self.mechanism.canaries) < 0.5
        seen = self._train(_with_labels(self._people, inside))
        return Played({name: score(seen, self.mechanism) for name, score in SCORES.items()}, inside)

    def _train(self, cohort: Cohort) -> Seen:
        mechanism = self.mechanism
        network, clip = build(self._study, seed=0), mechanism.privacy.clip
        expected = mechanism.privacy.expected(mechanism.people)
        seen: list[NDArray[np.float64]] = []

        def watch() -> None:
            """Add up what the step moved by, over both heads; labels are far above: it is minus."""
            found = sum(network.heads[name].weight.grad[0].double() for name in _HEADS)
            seen.append(-found.numpy() * expected / (clip * np.sqrt(len(_HEADS))))

        network.after_step = watch
        recipe = Recipe(
            steps=self._study.pretraining, rate=self._study.pretraining.learning_rate,
            weight_decay=0.0, epochs=mechanism.passes, of=mechanism.passes, seed=0,
        )  # fmt: skip
        everyone = np.arange(len(cohort))
        train_privately(network, cohort, everyone, recipe, _CPU, mechanism.privacy, self._way)
        return np.stack(seen)


def by_likelihood(seen: Seen, mechanism: Mechanism) -> NDArray[np.float64]:
    """The best there is against what is claimed: how much likelier all sums are with her."""
    cost = mechanism.cost
    noise = max(cost.noise, 1e-3)
    ratio = (2 * seen - 1) / (2 * noise**2)
    with np.errstate(divide="ignore"):
        found = np.logaddexp(np.log1p(-cost.rate), np.log(cost.rate) + ratio)
    return found.sum(axis=0)  # type: ignore[no-any-return]


def by_sum(seen: Seen, _: Mechanism) -> NDArray[np.float64]:
    """For whoever is in each step."""
    return seen.sum(axis=0)  # type: ignore[no-any-return]


def by_turn(seen: Seen, mechanism: Mechanism) -> NDArray[np.float64]:
    """For people who come in turn, in the order of their names: the sums of her step alone."""
    in_a_pass = mechanism.privacy.steps(mechanism.people)
    expected = mechanism.privacy.expected(mechanism.people)
    hers = np.arange(seen.shape[1]) // expected % in_a_pass
    by_pass = seen.reshape(-1, in_a_pass, seen.shape[1])
    return by_pass[:, hers, np.arange(seen.shape[1])].sum(axis=0)  # type: ignore[no-any-return]


SCORES: Final[Mapping[str, Score]] = {
    "likelihood": by_likelihood, "sum": by_sum, "turn": by_turn
}  # fmt: skip


def _study(mechanism: Mechanism) -> Study:
    """A table with a column for each canary, and a linear network of two heads."""
    steps = mechanism.steps.model_dump(mode="json", exclude={"batch_size"})
    changed = {
        "rounds": mechanism.passes, "local_epochs": 1, "trains": "full", "weight_averaging": 0.0,
        "gradient_clip": 0.0, "proximal_mu": 0.0, "weight_decay": 0.0, "sampling": "scans",
    }  # fmt: skip
    table: dict[str, Any] = {
        "name": "canaries",
        "seed": 0,
        "data": {
            "kind": "features",
            "columns": [f"column-{number}" for number in range(mechanism.canaries)],
        },
        "targets": {name: {"kind": "regression", "unit": "", "loss": "squared"} for name in _HEADS},
        "backbone": {"name": "linear"},
        "objective": {"name": "multitask"},
        "aggregation": {"normalisation": "groupnorm"},
        "privacy": mechanism.privacy.model_dump(mode="json"),
        "pretraining": {**steps, **changed},
        "sites": {"train": ["canaries"]},
    }
    return parse_study(table, Path("canaries.toml"))


def _people(mechanism: Mechanism) -> Cohort:
    """Canaries, and people without labels behind them, who are drawn and add nothing."""
    canaries, others = mechanism.canaries, mechanism.people - mechanism.canaries
    own = np.repeat(np.arange(canaries), SCANS)
    samples = np.zeros((SCANS * canaries + others, canaries), dtype=np.float32)
    samples[np.arange(len(own)), own] = _AWAY
    numbers = [*own.tolist(), *range(canaries, mechanism.people)]
    names = tuple(f"sub-{number:07d}" for number in numbers)
    scans = tuple(f"scan-{number:07d}" for number in range(len(names)))
    return Cohort(
        samples=samples, layout="table", participants=names, scans=scans,
        labels={name: np.full(len(names), np.nan, dtype=np.float32) for name in _HEADS},
        measures=None, findings=(), contents=scans, secrets=("",) * len(names),
    )  # fmt: skip


def _with_labels(people: Cohort, inside: NDArray[np.bool_]) -> Cohort:
    known = np.full(len(people), np.nan, dtype=np.float32)
    known[: SCANS * len(inside)][np.repeat(inside, SCANS)] = _FAR
    return replace(people, labels=dict.fromkeys(people.labels, known))
