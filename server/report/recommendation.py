"""Which method a consortium of this size should use: by a stated rule, or undecided.

A method is left aside when another is better on the same people by a paired difference whose p,
adjusted for all differences of the run, is below 0.05. What remains may be used; one that remains
alone, with every other beaten, is the answer. Too few people leave nobody aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from common.comparisons import ENSEMBLE
from common.study import Study
from server.report.comparisons import Comparison
from server.report.findings import Census
from server.report.gains import judged_together, site_of
from server.report.paired_tables import PairedTable
from server.results import TOGETHER

_JOINT: Final = {
    "pooled-linear": "a linear model of all sites",
    ENSEMBLE: "the mean of several seeds' federated models",
    "training-median": "the training median",
    "training-mean": "the training mean",
}
RULE: Final = (
    "Compared are methods that a consortium can use together; whether joining beats a hospital "
    "alone is said above. A method is left aside when another is better on the same people, by a "
    "paired difference whose p, adjusted for all differences of this run, is below 0.05. One that "
    "remains alone is named; several are undecided. Where fewer than 50 people stand behind a "
    "difference, or fewer than 10 of a class, it leaves nobody aside."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one question leaves: `left` are methods that no other beats, `beaten` the others.

    beaten: by method, one that is better. untested: pairs that too few people stand behind.
    """

    subject: str
    where: str
    left: tuple[str, ...]
    beaten: Mapping[str, str]
    untested: int

    @property
    def question(self) -> str:
        """`age at elm, which took no part`."""
        return f"{self.subject} {self.where}"

    @property
    def answer(self) -> str:
        """The one method that remains, or nothing."""
        return self.left[0] if len(self.left) == 1 and self.beaten else ""

    @property
    def sentence(self) -> str:
        """The answer in words, and never more than the differences say."""
        aside = listed(sorted(self.beaten))
        if self.answer:
            worse = f"{aside[:1].upper()}{aside[1:]} did worse on the same people."
            return f"{self.question}: use {self.answer}. {worse}"
        why = "too few people to tell" if self.untested and not self.beaten else "undecided"
        less = f"; {aside} did worse on the same people" if self.beaten else ""
        return f"{self.question}: {why}, between {listed(self.left)}{less}."


def choices(
    study: Study, compared: Sequence[Comparison], paired: Sequence[PairedTable]
) -> list[Choice]:
    """One for each target out of site, one for each tuned task and number of people."""
    found = [_out_of_site(one) for one in judged_together(study, compared)]
    for table in paired:
        if table.phase == "finetune":
            found += [_tuned(table, k) for k in dict.fromkeys(pair.k for pair in table.lines)]
    return [choice for choice in found if len(choice.left) + len(choice.beaten) > 1]


def in_short(chosen: Sequence[Choice]) -> str:
    """All answers in a sentence or two: what to use for which, and what is undecided."""
    by_answer: dict[str, list[str]] = {}
    for choice in chosen:
        by_answer.setdefault(choice.answer, []).append(choice.subject)
    told = [
        f"For {listed(subjects)} use {answer}." for answer, subjects in by_answer.items() if answer
    ]
    undecided = by_answer.get("", [])
    told += [f"Undecided for {listed(undecided)}."] if undecided else []
    return " ".join(told)


def size(study: Study, census: Census) -> str:
    """How large the consortium is that the answer is for."""
    counts = [census.get(site, {}).get("held", {}).get("scans", 0) for site in study.sites.train]
    scans = f" with {sum(counts):,} scans" if all(counts) and counts else ""
    hospitals = "1 training hospital" if len(counts) == 1 else f"{len(counts)} training hospitals"
    return f"{hospitals}{scans}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _out_of_site(one: Comparison) -> Choice:
    """The federated network and what else a consortium can use together."""
    rivals = [line for line in one.rivals() if line.model in _JOINT]
    names = {line.model: _JOINT[line.model] for line in rivals}
    better, worse = (
        [names[line.model] for line in rivals if line.verdict == verdict]
        for verdict in ("federated worse", "federated better")
    )
    own = "the federated model"
    beaten = dict.fromkeys(worse, own) | ({own: better[0]} if better else {})
    place = (
        "hospitals that took no part"
        if one.site == TOGETHER
        else f"{one.place}, which took no part"
    )
    return _choice(
        one.target, f"at {place}", [own, *names.values()], beaten,
        sum(line.verdict == "too few people" for line in rivals),
    )  # fmt: skip


def _tuned(table: PairedTable, k: int) -> Choice:
    """The ways of one task, learnt from as many people."""
    site = site_of(table)
    pairs = [pair for pair in table.lines if pair.k == k and site in pair.cells]
    beaten = {}
    for pair in pairs:
        if winner := table.winner(pair, site):
            beaten[pair.rival if winner == pair.own else pair.own] = winner
    where = "the hospitals that tuned it" if site == TOGETHER else site
    learnt = f" learnt from {k} people" if k else ""
    cells = [pair.cells[site] for pair in pairs]
    return _choice(
        f"{table.task}{learnt}",
        f"at {where}",
        dict.fromkeys(name for pair in pairs for name in (pair.rival, pair.own)),
        beaten,
        sum(cell.cell.adjusted is None for cell in cells),
    )


def _choice(
    subject: str,
    where: str,
    methods: Iterable[str],
    beaten: Mapping[str, str],
    untested: int,
) -> Choice:
    every = tuple(methods)
    left = tuple(name for name in every if name not in beaten)
    if not left:  # each beats another: nothing follows
        left, beaten = every, {}
    return Choice(subject=subject, where=where, left=left, beaten=beaten, untested=untested)
