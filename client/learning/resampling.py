"""Who learns, chooses and judges in one repeat of a protocol: people first, then their images.

Whoever the shared backbone was trained on may learn a task and never judges it: her scan is no
longer unseen, whatever her label. Everybody else changes places from repeat to repeat; at a site
that is held out, that is everybody.
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

    of: (N,) a number for each sample's participant. learning, choosing, judging: samples of the
    study's three splits. seen: whether the backbone was trained on the first of them.
    """

    of: NDArray[np.int64]
    learning: Indices
    choosing: Indices
    judging: Indices
    seen: bool = True

    @staticmethod
    def labelled(cohort: Cohort, target_name: str, splits: Splits, *, seen: bool = True) -> People:
        """Of everybody whose `target_name` is known."""
        known = ~np.isnan(cohort.labels[target_name])
        learning, choosing, judging = (
            indices[known[indices]]
            for indices in (
                cohort.indices(part, splits) for part in ("train", "validation", "test")
            )
        )
        return People(
            of=person_codes(cohort.participants), learning=learning, choosing=choosing,
            judging=judging, seen=seen,
        )  # fmt: skip

    @property
    def everyone(self) -> Indices:
        """All of their samples, ascending."""
        return np.sort(np.concatenate([self.learning, self.choosing, self.judging]))

    @property
    def unseen(self) -> Indices:
        """Those of people whom the backbone was not trained on."""
        new = self.learning[:0] if self.seen else self.learning
        return np.concatenate([new, self.choosing, self.judging])

    def names(self, samples: Indices) -> NDArray[np.int64]:
        """Whose `samples` are, each once."""
        return np.unique(self.of[samples])

    def images(self, samples: Indices, people: NDArray[np.int64]) -> Indices:
        """Those of `samples` that are of `people`."""
        return samples[np.isin(self.of[samples], people)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One repeat of a protocol: its number, and where its chance comes from.

    labels: (N,) of the target, NaN where unknown. secret: the site's; who judges in every repeat
    comes from it alone.
    """

    protocol: Protocol
    people: People
    labels: NDArray[np.float32]
    size: int
    number: int
    seed: int
    secret: int

    def split(self) -> Split:
        """The images of each part; one that is drawn twice stands there twice.

        Raises
        ------
        Refusal
            NO_DATA if too few people are there to learn, choose or judge.
        """
        generator = np.random.default_rng([self.seed, self.secret])
        parts = {
            "resampled": self._resampled, "subjects": self._subjects,
            "fractions": self._fractions, "folds": self._folds,
        }  # fmt: skip
        split = parts[self.protocol.scheme](generator)
        found = [len(part) for part in (split.train, split.validation, split.test)]
        if not all(found):
            raise self._lacks("{} labelled scans to learn from, {} to choose by, {} to judge by",
                              *found)  # fmt: skip
        return split

    def _resampled(self, generator: np.random.Generator) -> Split:
        """People first, about 5 : 1 : 1, then images with replacement."""
        people = self.people
        share = max(1, round(len(people.names(people.everyone)) / _PARTS))
        if self.protocol.pool == "fixed":
            order = generator.permutation(people.names(people.choosing))
            chooses, judges = order[:share], people.names(people.judging)
        else:
            order = generator.permutation(people.names(people.unseen))
            share = min(share, len(order) // 2)
            chooses, judges = order[:share], order[share : 2 * share]
        whole = self._of(chooses, judges)
        if not all(len(part) for part in (whole.train, whole.validation, whole.test)):
            return whole
        fifth, drawn = self.size // _FIFTH, self.protocol.pool == "drawn"
        return Split(
            train=generator.choice(whole.train, self.size),
            validation=generator.choice(whole.validation, fifth),
            test=generator.choice(whole.test, fifth) if drawn else whole.test,
        )

    def _subjects(self, generator: np.random.Generator) -> Split:
        """So many training participants, or of each class so many; at most as many choose."""
        people = self.people
        learn = self._so_many(people.learning, generator, "training", exactly=True)
        choose = self._so_many(people.choosing, generator, "validation")
        return Split(
            train=people.images(people.learning, learn),
            validation=people.images(people.choosing, choose),
            test=self._judges(),
        )

    def _so_many(
        self, among: Indices, generator: np.random.Generator, part: str, *, exactly: bool = False
    ) -> NDArray[np.int64]:
        """People drawn; who has images of several classes stands for the first that draws her."""
        order, drawn = generator.permutation(self.people.names(among)), list[NDArray[np.int64]]()
        for one in self._classes():
            held = among if one is None else among[self.labels[among] == one]
            taken = np.concatenate([order[:0], *drawn])
            able = order[np.isin(order, self.people.names(held)) & ~np.isin(order, taken)]
            if exactly and len(able) < self.size:
                what = "" if one is None else f" of class {int(one)}"
                raise self._lacks(
                    "{} labelled {} participants{}, {} asked", len(able), part, what, self.size
                )
            drawn.append(able[: self.size])
        return np.concatenate(drawn)

    def _classes(self) -> list[float | None]:
        if not self.protocol.each_class:
            return [None]
        return list(np.unique(self.labels[self.people.everyone]))

    def _fractions(self, generator: np.random.Generator) -> Split:
        """The first of one order of training participants, so that a smaller share is inside."""
        people = self.people
        learn = generator.permutation(people.names(people.learning))
        kept = max(1, round(len(learn) * self.size / 100))
        return Split(
            train=people.images(people.learning, learn[:kept]),
            validation=people.choosing,
            test=self._judges(),
        )

    def _folds(self, generator: np.random.Generator) -> Split:
        """One fold judges, and the next chooses: an epoch chosen by who judges flatters."""
        people, several = self.people, self.protocol.folds
        order = generator.permutation(people.names(people.unseen))
        folds = np.array_split(order, several)
        judges = self.number % several
        return self._of(folds[(judges + 1) % several], folds[judges])

    def _of(self, chooses: NDArray[np.int64], judges: NDArray[np.int64]) -> Split:
        """All images of these people; those of all others learn."""
        people, everyone = self.people, self.people.everyone
        learn = np.setdiff1d(people.of[everyone], np.concatenate([chooses, judges]))
        return Split(*(people.images(everyone, part) for part in (learn, chooses, judges)))

    def _judges(self) -> Indices:
        """The study's test participants, or so many of them, the same ones in each repeat."""
        people, most = self.people, self.protocol.judges
        names = people.names(people.judging)
        if most > len(names):
            raise self._lacks("{} labelled test participants, judges is {}", len(names), most)
        chosen = np.random.default_rng(self.secret).permutation(names)[: most or len(names)]
        return people.images(people.judging, chosen)

    def _lacks(self, text: str, *numbers: object) -> Refusal:
        return Refusal("NO_DATA", f"{self.protocol.name}: {text.format(*numbers)}")


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
