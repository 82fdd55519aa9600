"""Who learns, chooses and judges in one repeat of a protocol: people first, then their images.

Whoever the shared backbone was trained on may learn a task and never judges it: her scan is no
longer unseen, whatever her label. Everybody else changes places from repeat to repeat.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.data.loading import person_codes
from client.learning.ways import Indices, Split
from common.errors import Refusal
from common.schemes import Protocol
from common.sections import Splits, Target

# n learn, n/5 choose and n/5 judge (Leonardsen et al. 2025); people are parted likewise
_FIFTH = 5
_PARTS = _FIFTH + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """The labelled samples of a site, and whose they are.

    of: (N,) a number for each sample's participant. seen: samples of those whom the backbone was
    trained on; choosing, judging: of the study's other two splits.
    """

    of: NDArray[np.int64]
    seen: Indices
    choosing: Indices
    judging: Indices

    @staticmethod
    def labelled(cohort: Cohort, target_name: str, splits: Splits) -> People:
        """Of everybody whose `target_name` is known."""
        known = ~np.isnan(cohort.labels[target_name])
        seen, choosing, judging = (
            indices[known[indices]]
            for indices in (
                cohort.indices(part, splits) for part in ("train", "validation", "test")
            )
        )
        return People(
            of=person_codes(cohort.participants), seen=seen, choosing=choosing, judging=judging
        )

    @property
    def everyone(self) -> Indices:
        """All of their samples, ascending."""
        return np.sort(np.concatenate([self.seen, self.choosing, self.judging]))

    def images(self, samples: Indices, people: NDArray[np.int64]) -> Indices:
        """Those of `samples` that are of `people`."""
        return samples[np.isin(self.of[samples], people)]


def split_of_repeat(
    protocol: Protocol, people: People, size: int, generator: np.random.Generator
) -> Split:
    """The images of one repeat; one that is drawn twice stands there twice.

    Raises
    ------
    Refusal
        NO_DATA if nobody is left to choose or to judge.
    """
    train, validation, test = _parted(protocol, people, generator)
    if not all(len(part) for part in (train, validation, test)):
        raise Refusal(
            "NO_DATA", f"{len(train)} labelled scans to learn from, {len(validation)} to choose by "
            f"and {len(test)} to judge {protocol.name} by"
        )  # fmt: skip
    fixed = protocol.pool == "fixed"
    return Split(
        train=generator.choice(train, size),
        validation=generator.choice(validation, size // _FIFTH),
        test=test if fixed else generator.choice(test, size // _FIFTH),
    )


def _parted(
    protocol: Protocol, people: People, generator: np.random.Generator
) -> tuple[Indices, Indices, Indices]:
    """Images of those who learn, choose and judge: each person's in one part."""
    everyone = people.everyone
    share = max(1, round(len(np.unique(people.of[everyone])) / _PARTS))
    if protocol.pool == "fixed":
        free, test = people.choosing, people.judging
        order = generator.permutation(np.unique(people.of[free]))
        chooses, judges = order[:share], np.unique(people.of[test])
    else:
        free = np.concatenate([people.choosing, people.judging])
        order = generator.permutation(np.unique(people.of[free]))
        share = min(share, len(order) // 2)
        chooses, judges = order[:share], order[share : 2 * share]
        test = people.images(everyone, judges)
    validation = people.images(everyone, chooses)
    learn = np.setdiff1d(people.of[everyone], np.concatenate([chooses, judges]))
    return people.images(everyone, learn), validation, test


def tells_apart(target: Target, label: NDArray[np.float32], split: Split) -> bool:
    """Whether each part has more than one class: else nothing is learnt, chosen or judged."""
    parts = (split.train, split.validation, split.test)
    return target.kind == "regression" or all(len(np.unique(label[part])) > 1 for part in parts)


def shuffled(
    label: NDArray[np.float32], people: People, generator: np.random.Generator
) -> NDArray[np.float32]:
    """(N,) labels, dealt out anew: each person has those of another, scan by scan in turn."""
    found, everyone = label.copy(), people.everyone
    names = np.unique(people.of[everyone])
    for name, other in zip(names, generator.permutation(names), strict=True):
        own = people.images(everyone, np.array([name]))
        theirs = label[people.images(everyone, np.array([other]))]
        found[own] = np.resize(theirs, len(own))
    return found


def secret_number(cohort: Cohort) -> int:
    """What the site's secret adds to every draw: who was drawn when is nobody else's to know."""
    text = "\0".join(sorted(set(cohort.secrets))).encode()
    return int.from_bytes(hashlib.sha256(b"draws\0" + text).digest()[:8], "big")
