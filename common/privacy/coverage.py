"""What leaves a site in a private study, and what the noise does for each of it, item by item.

Differential privacy is of the arrays that rounds train. All else that leaves is counted by the
same rules as ever (small cells are withheld, every departure has a receipt), and is not covered by
any epsilon: the table says so, to whoever checks a study, approves it or reads its report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from common.study import Study

Treatment = Literal["noised", "not covered"]


@dataclass(frozen=True, slots=True)
class Departure:
    """Something that leaves, in words, and whether noise is on it."""

    what: str
    treatment: Treatment
    why: str

    @property
    def told(self) -> str:
        """All of it in a line."""
        return f"{self.treatment}: {self.what}: {self.why}"


def departures(study: Study) -> tuple[Departure, ...]:
    """Everything about participants that leaves a training site of a private study."""
    return (
        Departure(
            "arrays of the network, in each round (train)", "noised",
            "cut-down gradients of training participants, with noise: what epsilon bounds",
        ),
        *uncovered(study),
    )  # fmt: skip


def uncovered(study: Study) -> tuple[Departure, ...]:
    """What of that no epsilon bounds; losses of training participants are not sent at all."""
    return tuple(Departure(what, "not covered", why) for what, why in _uncovered(study))


def _uncovered(study: Study) -> Iterator[tuple[str, str]]:
    exact = "exact counts"
    yield "numbers of scans, people and labels (census, and with each round)", exact
    yield "tokens of scans, and a fingerprint of all (census, overlap)", "exact, by content"
    yield (
        "which labels are learnt from, and whether a site takes part or declines",
        "by whether enough people hold them: the site's policy",
    )
    if study.start is not None:
        yield (
            f"the checkpoint of {study.start.study} that rounds begin from",
            "whatever its own training told; its own epsilon, if it has one, is added",
        )
    yield (
        "sums that constants of a network are made of, where it has such (settle)",
        "exact sums over training participants: columns, ComBat, tangent spaces",
    )
    if study.evaluation.baselines:
        yield "sums of labels for the constant models (settle)", "exact sums"
    if study.evaluation.shortcuts:
        yield "sums by which sites are told apart (settle)", "exact sums"
    if study.comparisons.pooled:
        yield (
            "a linear model of all sites' pooled regional features (local engine alone)",
            "fitted on training participants, without noise",
        )
    if study.splits.validation:
        yield (
            "metrics and losses of validation participants, in each round (train)",
            "they are not trained on; the numbers are exact, in three figures",
        )
    for task in study.finetuning:
        yield (
            f"metrics of fine-tuning {task.name} (finetune)",
            "tuned at the site, without noise; the tuned networks stay there",
        )
        if "explain" in task.then:
            yield f"mean maps of {task.name} (explain)", "means over test participants"
    for protocol in study.protocols:
        yield f"metrics of the protocol {protocol.name}", "learnt at the site, without noise"
    if study.sites.heldout:
        yield (
            "metrics of held-out sites' participants (evaluate)",
            "they are not trained on; the numbers are exact, in three figures",
        )
