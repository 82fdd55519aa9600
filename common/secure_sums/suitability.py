"""Whether a study can be summed in secret: where one site's own report is needed, it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import SettingError

if TYPE_CHECKING:
    from common.network.plan import Plan
    from common.study import Study

_MOST_KEYS = 1_000_000  # slots times sites: 90 MB of sealed shares from each site


def check_secure(study: Study) -> None:
    """Raise `ValueError`, with the key to change, for what needs the reports of single sites."""
    settings, sites = study.secure_sums, len(study.sites.train)
    fewest, rounds = settings.fewest(sites), study.pretraining.rounds
    if sites < 3:
        raise ValueError(
            f"secure_sums.on is true and sites.train has {sites}; of two sites each would know the "
            "other's part of the sum, so that 3 must train at least"
        )
    if not rounds:
        raise ValueError(
            "secure_sums.on is true and pretraining.rounds is 0; what is settled by sums alone "
            "(settle) is not masked, only rounds are"
        )
    if not sites < 2 * fewest <= 2 * sites:
        raise ValueError(
            f"secure_sums.threshold is {fewest}; of {sites} training sites more than half are "
            f"needed and at most all: {sites // 2 + 1} to {sites}, {-(-2 * sites // 3)} by default"
        )
    if study.quorum < fewest:
        raise ValueError(
            f"sites.quorum is {study.quorum} and secure_sums.threshold {fewest}; fewer sites are "
            "never added up, so that the quorum must be as many at least"
        )
    if (1 + len(study.comparisons.targets) + study.comparisons.ensemble) * rounds * sites > (
        _MOST_KEYS
    ):
        raise ValueError(
            f"secure_sums.on is true and pretraining.rounds is {rounds}, among {sites} sites; keys "
            f"are told for all rounds at once, and {_MOST_KEYS:,} rounds times sites are the most"
        )
    _check_models(study)


def _check_models(study: Study) -> None:
    """A sum of one site is that site's update, and so is what it tuned."""
    compared = study.comparisons
    for key in ("single_site", "pooled"):
        if getattr(compared, key):
            raise ValueError(
                f"comparisons.{key} is true, and secure_sums.on as well; its rounds are reports "
                f"of one place, of which a sum hides nothing. Set comparisons.{key} = false"
            )
    for number, task in enumerate(study.finetuning):
        if "send" in task.then:
            raise ValueError(
                f"finetuning.{number}.then has send, which lets out all that tuning trained at one "
                "site, and secure_sums.on is true; take it from the list"
            )


def check_arrays(plan: Plan) -> None:
    """Raise `SettingError` for a network whose arrays cannot be written in steps."""
    for name, rule in plan.items():
        if rule.travels and rule.dtype not in ("float32", "float64"):
            raise SettingError(
                f"secure_sums.on: array {name} is {rule.dtype}; sums are made of floating point"
            )
