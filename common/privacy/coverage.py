"""What leaves a site, and what noise and secure sums do for each of it, item by item.

Differential privacy is of the arrays that rounds train. All else that leaves is counted by the
same rules as ever (small cells are withheld, every departure has a receipt), and is not covered by
any epsilon. Secure sums are of what rounds train and tell: the coordinator sees the sum over sites
alone. The table says which is which, to whoever checks a study, approves it or reads its report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from common.study import Study

Treatment = Literal["noised", "summed", "noised, summed", "not covered"]


@dataclass(frozen=True, slots=True)
class Departure:
    """Something that leaves, in words; whether noise is on it, or only sums of it are seen."""

    what: str
    treatment: Treatment
    why: str

    @property
    def told(self) -> str:
        """All of it in a line."""
        return f"{self.treatment}: {self.what}: {self.why}"


def departures(study: Study) -> tuple[Departure, ...]:
    """Everything about participants that leaves a training site of a private or secure study."""
    return (*_covered(study), *uncovered(study))


def _covered(study: Study) -> Iterator[Departure]:
    arrays, secure = "arrays of the network, in each round (train)", study.secure_sums.on
    if study.privacy.hides_sites:
        yield Departure(
            arrays, "noised, summed",
            "a site's whole update, cut down, with noise that sites share: what epsilon bounds",
        )  # fmt: skip
    elif study.privacy.is_private:
        why = "cut-down gradients of training participants, with noise: what epsilon bounds"
        both = "; under masks besides, so that sums over sites alone are seen"
        yield Departure(arrays, "noised, summed" if secure else "noised", why + both * secure)
    elif secure:
        yield Departure(arrays, "summed", "under masks that cancel out in the sum over sites")
    if secure:
        yield Departure(
            "numbers of scans, people and labels, losses and metrics, in each round (train)",
            "summed", "under the same masks; no epsilon bounds them",
        )  # fmt: skip


def uncovered(study: Study) -> tuple[Departure, ...]:
    """What of that neither helps; losses of training participants are not sent in a private one."""
    return tuple(Departure(what, "not covered", why) for what, why in _uncovered(study))


def _of_rounds(study: Study) -> Iterator[tuple[str, str]]:
    """Counts, and what goes beside the arrays of rounds."""
    exact, secure = "exact counts", study.secure_sums.on
    with_rounds = "" if secure else ", and with each round"
    yield f"numbers of scans, people and labels (census{with_rounds})", exact
    if secure:
        costs = "; what a private round cost, and so how many train" * study.privacy.is_private
        yield f"how long each round took (train){costs}", "exact, by site"
    elif study.splits.validation:
        yield (
            "metrics and losses of validation participants, in each round (train)",
            "they are not trained on; the numbers are exact, in three figures",
        )


def _uncovered(study: Study) -> Iterator[tuple[str, str]]:
    yield from _of_rounds(study)
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
