"""The `[[protocols]]` of a study: how often, from how many and on whom a task's ways are compared.

A way is judged by many trainings, each on people that another draw chose; a single one tells mostly
of its draw.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from common.comparisons import SINGLE_SITE
from common.sections import FineTuning, Name, Target
from common.seeding import seed_of
from common.settings import Table

SETTINGS: Final = 9  # among which validation chooses, for every way: as many as linear penalties
MOST_REPEATS: Final = 1000
_SEEDS: Final = 2**32
_RANGES: Final = {"resampled": (10, 1_000_000), "fractions": (1, 100)}


class Protocol(Table):
    """One comparison of all ways of a task, each site on its own people."""

    name: Name = Field(description="Name of the protocol; column `task` of its results.")
    task: Name = Field(
        description="The `[[finetuning]]` task whose target, methods, epochs and grid it uses; the "
        "grid must have nine settings, as many as there are penalties of a linear model."
    )
    scheme: Literal["resampled", "subjects", "fractions", "folds"] = Field(
        description="resampled: people are parted anew in each repeat, then images drawn with "
        "replacement inside each part, and a fifth as many to choose and to judge. subjects: so "
        "many training participants with all of their images. fractions: nested shares of them. "
        "folds: each fold of the people whom the backbone has not seen judges once."
    )
    at: Literal["train", "heldout"] = Field(
        "train",
        description="Which sites run it: those that train, or those held out, each learning from "
        "some of its own people what it is judged on by its others (few-shot).",
    )
    sizes: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (),
        description="How much is learnt from, several are compared: images (resampled, from 10 "
        "on), people (subjects), per cent of the training people (fractions); none with folds.",
        max_length=100,
    )
    each_class: bool = Field(
        False, description="subjects: learn from so many people of each class."
    )
    repeats: Annotated[int, Field(ge=1, le=MOST_REPEATS)] = Field(
        100,
        description="How often each way learns from each size; folds: how often people are parted "
        "into folds.",
    )
    folds: Annotated[int, Field(ge=3, le=100)] = Field(
        5, description="folds: how many; one judges, the next chooses, all others learn."
    )
    judges: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0,
        description="subjects and fractions: how many of the study's test participants judge, the "
        "same ones each time; 0: all.",
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
    def _sizes_fit(self) -> Self:
        if len(set(self.sizes)) != len(self.sizes):
            raise ValueError("sizes lists something twice")
        if bool(self.sizes) == (self.scheme == "folds"):
            given = ", ".join(map(str, self.sizes))
            needed = "folds learn from all" if self.sizes else "one at least is needed"
            raise ValueError(f"sizes is [{given}]; {needed}")
        if self.each_class and self.scheme != "subjects":
            raise ValueError(f"each_class is true; {self.scheme} counts no people by class")
        least, most = _RANGES.get(self.scheme, (1, 1_000_000))
        for size in self.sizes:
            if not least <= size <= most:
                raise ValueError(f"sizes has {size}; {self.scheme} takes {least} to {most:,}")
        if self.total > MOST_REPEATS:
            raise ValueError(
                f"repeats is {self.repeats} and folds is {self.folds}, {self.total:,} trainings; "
                f"at most {MOST_REPEATS:,} of one way are asked for"
            )
        return self

    @property
    def total(self) -> int:
        """How many trainings of one way and size are judged."""
        return self.repeats * (self.folds if self.scheme == "folds" else 1)

    @property
    def told(self) -> str:
        """What is learnt from, in words."""
        sizes = ", ".join(map(str, self.sizes))
        return {
            "resampled": f"from {sizes} images",
            "subjects": f"from {sizes} people" + (" of each class" if self.each_class else ""),
            "fractions": f"from {sizes} % of the training people",
            "folds": f"from all but two of {self.folds} folds",
        }[self.scheme]

    @property
    def counts(self) -> tuple[int, ...]:
        """The sizes; 0, all, where there are none."""
        return self.sizes or (0,)

    @property
    def judges_change(self) -> bool:
        """Whether other people judge in each repeat, or the same in all of them."""
        return self.scheme == "folds" or (self.scheme == "resampled" and self.pool == "drawn")


def check_place(place: str, protocol: Protocol, task: FineTuning, target: Target) -> None:
    """Raise `ValueError` for people of each class of a number, or for a start that is elsewhere."""
    if protocol.each_class and target.kind == "regression":
        raise ValueError(f"{place}.each_class is true; {task.target} is a number, without classes")
    alone = [way for way in task.methods if way.startswith(f"{SINGLE_SITE}/")]
    if protocol.at == "heldout" and alone:
        raise ValueError(
            f'{place}.at is "heldout", and {task.name} has the way {alone[0]}; a site that is held '
            "out has no model of its own, and gets nobody else's"
        )


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


def seed_of_repeat(study_seed: int, site: str, protocol: Protocol, size: int, repeat: int) -> int:
    """The column `seed`: what the draws of one repeat come from, with the site's own secret.

    Shares are nested, and folds of one parting share it, so that these have one seed.
    """
    size = 0 if protocol.scheme == "fractions" else size
    parting = repeat // protocol.folds if protocol.scheme == "folds" else repeat
    return seed_of(study_seed, "protocol", site, protocol.name, size, parting) % _SEEDS
