"""Models that a run trains beside the federated one, and ways of tuning that begin from them.

A way is START/METHOD. Beside `pretrained`, the federated model, and `scratch`, a start is a rival
model's backbone: of pooled data, of the tuning site alone, or learnt from some of the targets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, model_validator

from common.sections import FineTuning, Target
from common.settings import Table

# short enough for a method behind it to be named in an order
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$")]
FEDERATED: Final = "federated"
PRETRAINED: Final = "pretrained"
SCRATCH: Final = "scratch"
POOLED: Final = "pooled"
SINGLE_SITE: Final = "single-site"
# fitted in closed form: a penalised linear model on the network's features, or on regional measures
CLOSED_FORM: Final = ("frozen", "linear")
ENSEMBLE: Final = "ensemble"  # the mean of what federated models of several seeds say
SEEDED: Final = "seed-"  # beginning of the names of all of them but the first
HEAD: Final = "tuned-"  # model of a head that a site tuned, in results: `tuned-amber`
# whose names results, folders and ways give a meaning of their own
_TAKEN: Final = frozenset(
    {
        FEDERATED,
        PRETRAINED,
        SCRATCH,
        POOLED,
        "linear",
        "closed",
        "constant",
        "baselines",
        "all",
        ENSEMBLE,
    }
)
_BEGINNINGS: Final = (HEAD, "single-", "site-", "training-", "shortcuts-", SEEDED)
_ENDS: Final = ("-linear", "-mean", "-median")


class Comparisons(Table):
    """Models trained beside the federated one, with the same settings, to judge it by."""

    single_site: bool = Field(True, description="Train one model on each training site alone.")
    pooled: bool = Field(
        True, description="Train one model on all training data (local engine only)."
    )
    ensemble: Annotated[int, Field(ge=0, le=20)] = Field(
        0,
        description="Train so many federated models that differ in their seed alone, and judge "
        "each and the mean of what they say (`ensemble`); 0: none.",
    )
    targets: dict[ModelName, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        {},
        description="Models trained by all training sites on some of the pretraining targets "
        'alone, by name: {age-only = ["age"]}.',
        max_length=10,
    )

    @model_validator(mode="after")
    def _several_are_two(self) -> Self:
        if self.ensemble == 1:
            raise ValueError("ensemble is 1; the mean is of 2 models at least, or 0 for none")
        return self

    @property
    def members(self) -> tuple[str, ...]:
        """Models by all sites that differ in their seed alone, the study's own first."""
        return (FEDERATED, *(f"{SEEDED}{number}" for number in range(2, self.ensemble + 1)))

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        for name in self.targets:
            if name in _TAKEN or name.startswith(_BEGINNINGS) or name.endswith(_ENDS):
                raise ValueError(
                    f'targets has a model "{name}", which means something else in results; '
                    "take another name"
                )
        return self


def model_of(start: str, site: str) -> str:
    """The model whose arrays a way at `site` begins from; without a start, the study's own.

    >>> model_of("pretrained", "amber"), model_of("single-site", "amber"), model_of("age", "amber")
    ('federated', 'single-amber', 'age')
    """
    if start == SINGLE_SITE:
        return f"single-{site}"
    return FEDERATED if start in ("", PRETRAINED, SCRATCH) else start


def brings_arrays(start: str) -> bool:
    """Whether a way begins from arrays that come with its order."""
    return start not in ("", SCRATCH)


def is_shared(init: str, method: str) -> bool:
    """Whether a way ends in a head on what every site has, so that others can judge it.

    A site's own backbone is no one else's.
    """
    return method in CLOSED_FORM and init != SINGLE_SITE


def check_starts(
    place: str, task: FineTuning, compared: Comparisons, sites: Collection[str]
) -> None:
    """Raise `ValueError` for a way that begins from a model which the study does not train."""
    alone = f"{place}.methods has a way of " + "{}; comparisons.{} must be true for it"
    for start in dict.fromkeys(way.rpartition("/")[0] for way in task.methods):
        if start in ("", PRETRAINED, SCRATCH, *compared.targets):
            continue
        if start not in (POOLED, SINGLE_SITE):
            known = ", ".join((PRETRAINED, SCRATCH, POOLED, SINGLE_SITE, *compared.targets))
            raise ValueError(
                f'{place}.methods begins a way with "{start}"; known are {known}, and models that '
                'comparisons.targets names, as {age-only = ["age"]}'
            )
        key = "pooled" if start == POOLED else "single_site"
        if not getattr(compared, key):
            raise ValueError(alone.format(start, key))
        if len(sites) < 2:
            raise ValueError(
                f"{place}.methods has a way of {start}; one site trains, whose model is the study's"
            )


def check_cross(place: str, task: FineTuning) -> None:
    """Raise `ValueError` if no way of the task ends in a head that another site could judge."""
    ways = [way.rpartition("/")[::2] for way in task.methods]
    if "cross" in task.then and not any(is_shared(*way) for way in ways):
        raise ValueError(
            f"{place}.then has cross, and no way ends in a head on what all sites have; they are "
            "linear, and frozen but for single-site/frozen"
        )


def check_targets(compared: Comparisons, learnt: dict[str, Target], sampling: str) -> None:
    """Raise `ValueError` for a model of some targets that no training could be."""
    for name, targets in compared.targets.items():
        place = f"comparisons.targets.{name}"
        unknown = [target for target in targets if target not in learnt]
        if unknown:
            raise ValueError(
                f"{place} names {', '.join(unknown)}; pretraining targets are {_listed(learnt)}"
            )
        if len(set(targets)) < len(targets):
            raise ValueError(f"{place} lists something twice")
        if set(targets) == set(learnt):
            raise ValueError(
                f"{place} lists all pretraining targets; that is the federated model itself"
            )
        kind, _, balanced = sampling.partition(":")
        if kind == "classes" and balanced in learnt and balanced not in targets:
            raise ValueError(
                f'pretraining.sampling is "{sampling}", and {place} does not learn {balanced}; '
                "leave one of the two"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
