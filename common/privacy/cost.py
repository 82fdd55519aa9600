"""What one training order of a private study costs each of a site's participants.

Noise, rate and steps are all that an accountant needs, and both ends agree on how they follow from
the study and the number of people. Participants are drawn each by chance of her own (Poisson), and
two data sets are neighbours if one holds one participant more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from common.settings import Table

if TYPE_CHECKING:
    from common.study import Study

_USUAL: Final = 0.1  # of one over the people: delta where a study names none
_MOST: Final = 1.0  # of the same: delta whatever a study names
_OF_SITES: Final = 1e-5  # delta of a site where a study names none
MIXED: Final = "mixed"  # in place of a study: several, told as one at its worst
MOST_STEPS: Final = 2**53  # what a float still counts one by one


class Cost(Table):
    """One release: so many noised steps, in each of which everybody is drawn at this rate."""

    noise: Annotated[float, Field(ge=0, le=1e6)] = Field(
        description="Standard deviation of the noise, in clips."
    )
    rate: Annotated[float, Field(gt=0, le=1)] = Field(
        description="Chance of each participant to be drawn in a step."
    )
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = Field(
        description="Steps, those that drew nobody among them."
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Chance that the bound does not hold."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """All steps of one study, by its digest, at one noise, rate and delta."""

    study: str
    cost: Cost

    @property
    def word(self) -> str:
        """All of it in five parts, as books tell it.

        >>> spent = Spent(study="ab" * 32, cost=Cost(noise=1, rate=0.01, steps=9, delta=1e-5))
        >>> spent.word[60:], read_spent(spent.word) == spent
        ('abab 1.0 0.01 1e-05 9', True)
        """
        cost = self.cost
        return f"{self.study} {cost.noise!r} {cost.rate!r} {cost.delta!r} {cost.steps}"


def read_spent(word: str) -> Spent:
    """What books tell in one word; `ValueError` if it is none."""
    study, noise, rate, delta, steps = word.split(" ")
    if study != MIXED and not re.fullmatch("[0-9a-f]{64}", study):
        raise ValueError("it is of no study")
    cost = Cost(noise=float(noise), rate=float(rate), delta=float(delta), steps=int(steps))
    return Spent(study=study, cost=cost)


def steps_in(words: Iterable[str]) -> int:
    """All steps that books tell of: they never become fewer."""
    return sum(read_spent(word).cost.steps for word in words)


def cost_of(study: Study, people: int) -> Cost:
    """What one round costs at a site where `people` enter a loss; at least one must.

    Steps are counted in whole numbers: `ceil(1 / rate)` of a rounded rate may be one too many. A
    delta above one over the people would let somebody be shown whole, whatever epsilon is. Where a
    whole site is hidden, replacing it moves a sum by two clips: noise counts half, for the site and
    for each of its people alike.
    """
    privacy, passes = study.privacy, study.pretraining.local_epochs
    if privacy.hides_sites:  # one release, of everybody; its delta tells nothing of how many
        delta = min(privacy.delta or _OF_SITES, _MOST / (people + 1))
        return Cost(noise=privacy.noise / 2, rate=1.0, steps=1, delta=delta)
    return Cost(
        noise=privacy.noise,
        rate=privacy.rate(people),
        steps=passes * privacy.steps(people),
        delta=min(privacy.delta or _USUAL / people, _MOST / (people + 1)),
    )
