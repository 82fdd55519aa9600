"""The mechanism broken on purpose, by seams in the product's own functions; never by a switch.

Each break stays unseen by accountants: what a site would declare is the same as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import count
from typing import Any, Final
from unittest.mock import patch

import torch

from client.learning.privacy import training
from client.learning.privacy.chance import Chance
from client.learning.privacy.clipping import ClippedSum
from common.privacy.settings import Privacy
from common.sections import Pretraining
from deploy.audit.mechanism import SCANS, Arena, Mechanism

Break = Callable[[], AbstractContextManager[Any]]

_NORMAL, _DRAWN, _MADE = Chance.normal, training.drawn, Arena.__init__
_STEPS: Final = Pretraining(
    optimiser="sgd", momentum=0.0, learning_rate=0.1, schedule="constant", gradient_clip=0.0
)


def mechanism(noise: float, people_per_step: int, people: int, passes: int) -> Mechanism:
    """Flat clipping, and a delta of 0.001."""
    privacy = Privacy(unit="participant", noise=noise, epsilon=0.0, people_per_step=people_per_step)
    return Mechanism(privacy=privacy, people=people, passes=passes, delta=1e-3, steps=_STEPS)


# each break shows in one of them with some minutes of one core
SAMPLED: Final = mechanism(1.0, 64, 512, 4)  # one of eight in a step: epsilon 4.1
WHOLE: Final = mechanism(4.0, 512, 512, 16)  # everybody in each: epsilon 3.5


def noise_halved() -> AbstractContextManager[Any]:
    """A factor of two that somebody put in the wrong place."""
    return patch.object(
        Chance, "normal", lambda self, like, deviation: _NORMAL(self, like, deviation / 2)
    )


def no_clipping() -> AbstractContextManager[Any]:
    """Gradients as long as they come."""
    return patch.object(ClippedSum, "_factors", lambda self, lengths: torch.ones_like(lengths))


def drawn_twice() -> AbstractContextManager[Any]:
    """Whoever is drawn is added twice."""
    return patch.object(training, "drawn", lambda *given: 2 * _DRAWN(*given))


def two_names() -> AbstractContextManager[Any]:
    """Each canary is in the cohort under two ids, with a scan under each."""

    def made(self: Arena, mechanism: Mechanism) -> None:
        _MADE(self, mechanism)
        names, canaries = list(self._people.participants), mechanism.canaries
        assert mechanism.people == 2 * canaries  # as many others, whose names are free
        names[1 : SCANS * canaries : SCANS] = names[SCANS * canaries :]
        self._people = replace(self._people, participants=tuple(names))

    return patch.object(Arena, "__init__", made)


def everyone() -> AbstractContextManager[Any]:
    """All are in each step, while it is claimed that a few are drawn."""
    return patch.object(
        training,
        "drawn",
        lambda people, rate, most, generator: _DRAWN(people, 1.0, most, generator),
    )


def in_turn() -> AbstractContextManager[Any]:
    """Batches of a size in the order of names: the same few are together in each pass."""
    step = count()

    def fixed(people: Any, rate: float, most: int, generator: Any) -> Any:
        size, number = round(rate * len(people)), round(1 / rate)
        first = size * (next(step) % number)
        return _DRAWN(people[first : first + size], 1.0, most, generator)

    return patch.object(training, "drawn", fixed)


intact: Break = nullcontext

BREAKS: Final[dict[str, tuple[Mechanism, Break]]] = {
    "noise halved": (SAMPLED, noise_halved),
    "no clipping": (SAMPLED, no_clipping),
    "added twice": (SAMPLED, drawn_twice),
    "everybody drawn": (SAMPLED, everyone),
    "fixed batches": (SAMPLED, in_turn),
    "under two ids": (WHOLE, two_names),
    "noise halved, whole": (WHOLE, noise_halved),
}
