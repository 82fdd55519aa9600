"""The `[[protocols]]` of a study: how often, from how many and on whom a task's ways are compared.

A way is judged by many trainings, each on people that another draw chose; a single one tells mostly
of its draw.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from common.sections import FineTuning, Name
from common.seeding import seed_of
from common.settings import Table

SETTINGS: Final = 9  # among which validation chooses, for every way: as many as linear penalties
MOST_REPEATS: Final = 1000
_SEEDS: Final = 2**32


class Protocol(Table):
    """One comparison of all ways of a task, each site on its own people."""

    name: Name = Field(description="Name of the protocol; column `task` of its results.")
    task: Name = Field(
        description="The `[[finetuning]]` task whose target, methods, epochs and grid it uses; the "
        "grid must have nine settings, as many as there are penalties of a linear model."
    )
    scheme: Literal["resampled"] = Field(
        description="resampled: people are parted anew in each repeat, then images drawn with "
        "replacement inside each part, and a fifth as many to choose and to test on."
    )
    sizes: tuple[Annotated[int, Field(ge=10, le=1_000_000)], ...] = Field(
        description="resampled: how many images are learnt from; several are compared.",
        min_length=1,
        max_length=100,
    )
    repeats: Annotated[int, Field(ge=2, le=MOST_REPEATS)] = Field(
        100, description="How often each way learns from each size."
    )
    pool: Literal["drawn", "fixed"] = Field(
        "drawn",
        description="resampled: judge on a fifth as many images, drawn, or fixed: on all of the "
        "study's test participants, the same each time.",
    )
    shuffled: bool = Field(
        False,
        description="Deal the labels out anew among a site's people: every way must then be at "
        "chance, or something leaks.",
    )

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len(set(self.sizes)) != len(self.sizes):
            raise ValueError("sizes lists something twice")
        return self

    @property
    def total(self) -> int:
        """How many trainings of one way and size are judged."""
        return self.repeats


def check_grid(place: str, task: FineTuning) -> None:
    """Raise `ValueError` unless networks choose among as many settings as linear models do."""
    rates, decays = len(task.learning_rates), len(task.weight_decays)
    trained = [way for way in task.methods if "/" in way and not way.endswith("/frozen")]
    if trained and rates * decays != SETTINGS:
        raise ValueError(
            f'{place}.task is "{task.name}", whose grid has {rates} learning_rates and {decays} '
            f"weight_decays, {rates * decays} settings for {trained[0]}; a protocol gives every "
            f"way {SETTINGS}, as linear models have penalties: list three of each"
        )


def seed_of_repeat(study_seed: int, site: str, protocol: str, size: int, repeat: int) -> int:
    """The column `seed`: what the draws of one repeat come from, with the site's own secret."""
    return seed_of(study_seed, "protocol", site, protocol, size, repeat) % _SEEDS
