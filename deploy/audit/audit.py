"""An audit: attacks on what a run promised, and what they found beside it.

1. The mechanism, from the inside (`mechanism`): what accountants bound, as tightly as can be shown.
2. Who was trained on, from the finished model (`shadows`, `membership`), with and without privacy.
3. What one person looks like, from what left of her (`inversion`), with and without privacy.

All bounds of epsilon together hold with `CONFIDENCE`: each has an equal share of the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.learning.training import Recipe
from common.arrays import Arrays
from common.errors import FolderError, SettingError
from common.privacy.accounting import epsilon
from common.protocol.code import files_behind
from common.protocol.wire import Stored
from common.runtime.progress import say
from common.seeding import seed_of
from common.study import canonical
from deploy.audit.bounds import CONFIDENCE, OF_EACH, SMALL_DELTA
from deploy.audit.canaries import CALIBRATE, bounded
from deploy.audit.inversion import inverted, inverted_round, scene
from deploy.audit.mechanism import Arena
from deploy.audit.membership import (
    FEWEST,
    Attack,
    area,
    attacked,
    calibrated,
    likelihoods,
    losses,
    minus_loss,
    ratios,
)
from deploy.audit.people import People, people_of
from deploy.audit.shadows import Shadows, says, shadows, why_none
from deploy.audit.subject import Claim, Subject, read_subject
from deploy.audit.trials import Clock, Trials, check_setting
from deploy.releases.documents import digest_of_file
from server.report.audit import EPSILON, Audit, Line, Part, read_audit, write_audit
from server.run import alone

PARTS: Final[tuple[Part, ...]] = ("mechanism", "membership", "inversion")
WORK: Final = "audit"  # folder of the trials, beside the tables
_MAKERS: Final = ("inversion", "mechanism", "people", "shadows")  # modules that make trials
_FEWEST_JUDGED: Final = 10  # members, and others, for an attack on the finished model itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person asks of an audit.

    trials: games of canaries. shadows: of each sort. inverted: people. people: in each of two made
    hospitals, where `sites` is None.
    """

    parts: Sequence[Part] = PARTS
    sites: Path | None = None
    trials: int = 50_000
    shadows: int = 32
    inverted: int = 5
    people: int = 150
    seed: int = 0
    minutes: float = 0.0


def audited(place: Path, asked: Asked, out: Path | None = None) -> Audit:
    """Attack a finished run or a release; the tables lie in its folder, or in `out`.

    Raises
    ------
    FolderError
        If it is not finished, or `out` is needed, or holds trials of another audit.
    SettingError
        If something is asked that cannot be attacked.
    DataError
        If the auditor's people are too few.
    """
    subject = read_subject(place)
    if subject.is_release and out is None:
        raise FolderError(f"{place} is a release, to which nothing is added; give --out")
    folder = out or place
    if asked.parts == ("mechanism",) and subject.dearest is None:
        raise SettingError(
            f"{place} was not trained privately, so there is no mechanism to attack; membership "
            "and inversion can be attacked"
        )
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    with alone(folder / WORK):
        return _attacked(subject, asked, folder)


def _attacked(subject: Subject, asked: Asked, folder: Path) -> Audit:
    torch.set_num_threads(1)  # many small steps: a second thread only waits
    setting = _setting(subject, asked)
    check_setting(folder / WORK, setting)
    clock, remarks = Clock(asked.minutes), list(_remarks(subject))
    lines: list[Line] = []
    if "mechanism" in asked.parts and subject.dearest is not None:
        lines += _mechanism(subject, subject.dearest, folder / WORK, asked, clock)
    words = ""
    if "membership" in asked.parts or "inversion" in asked.parts:
        people = _auditors(subject, asked, folder / WORK)
        words = _told_of(people)
        lines += _by_people(subject, people, folder / WORK, asked, clock, remarks)
    found = _with_earlier(
        folder,
        asked,
        Audit(
            confidence=CONFIDENCE, setting=hashlib.sha256(canonical(setting)).hexdigest(),
            private=_bounded(subject.dearest) is not None, people=words, lines=tuple(lines),
            remarks=tuple(remarks),
        ),
    )  # fmt: skip
    write_audit(folder, found)
    return found


def _with_earlier(folder: Path, asked: Asked, now: Audit) -> Audit:
    """The same with what an earlier call found in parts that this one was not asked for."""
    before = read_audit(folder)
    if before is None or before.setting != now.setting:
        return now
    lines = [*now.lines, *(line for line in before.lines if line.part not in asked.parts)]
    lines.sort(key=lambda line: PARTS.index(line.part))
    remarks = dict.fromkeys(
        (*before.remarks, *now.remarks) if len(lines) > len(now.lines) else now.remarks
    )
    return now.model_copy(
        update={
            "lines": tuple(lines), "remarks": tuple(remarks), "people": now.people or before.people
        }
    )  # fmt: skip


def _auditors(subject: Subject, asked: Asked, work: Path) -> People:
    """The people of the attacks, whom trials that are there must be of as well."""
    people = people_of(
        subject.study, asked.sites, work / "hospitals", asked.people, asked.seed
    )  # fmt: skip
    held = {
        f"site {site.name}": cohort.fingerprint
        for site, cohort in zip(people.sites, people.cohorts, strict=True)
    }
    check_setting(work / "people", {"people": "made" if people.made else "given", **held})
    return people


def _setting(subject: Subject, asked: Asked) -> dict[str, str | int]:
    """What makes trials those of one audit, beside its people; more of them may follow."""
    return {
        "study": subject.study.digest,
        "model": digest_of_file(subject.run.federated.final),
        "code": _code(),
        "seed": asked.seed,
    }


def _code() -> str:
    """Digest of all that makes trials: what a defect let pass is not taken for mended."""
    behind = files_behind(["client.learning.privacy.training", "client.service.agent"])
    own = {name: Path(__file__).with_name(f"{name}.py") for name in _MAKERS}
    hasher = hashlib.sha256()
    for _, path in sorted({**behind, **own}.items()):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


def _remarks(subject: Subject) -> Iterator[str]:
    if not subject.study.privacy.is_private:
        yield (
            'privacy.unit is "none": there is no mechanism and no epsilon to hold attacks against; '
            "they show what such a model tells"
        )
    elif subject.dearest is not None and _bounded(subject.dearest) is None:
        yield "privacy.noise is 0, which no epsilon bounds: nothing is promised"
    elif subject.is_release:
        yield (
            "a release holds no rounds: what they cost is as the study plans it for the people "
            "that the census counted"
        )


def _bounded(claim: Claim | None) -> float | None:
    """What a claim promises; None without any, or without noise."""
    return claim.epsilon if claim is not None and isfinite(claim.epsilon) else None


def _told_of(people: People) -> str:
    whose = "made people, of nobody" if people.made else "people"
    sites = ", ".join(site.name for site in people.sites)
    return f"{people.number:,} {whose}, at {sites}"


def _mechanism(
    subject: Subject, claim: Claim, folder: Path, asked: Asked, clock: Clock
) -> Iterator[Line]:
    """Canaries at the site whose participants paid most."""
    mechanism = subject.mechanism(claim)
    trainings = max(2 * CALIBRATE, -(-asked.trials // mechanism.canaries))
    arena = Arena(mechanism)

    def one(n: int) -> Arrays:
        played = arena.play(np.random.default_rng(seed_of(asked.seed, "canaries", n)))
        return {**played.scores, "inside": played.inside.astype(np.int32)}

    trials = Trials(folder, "mechanism")
    trials.play("trainings with canaries", trainings, one, clock)
    found = bounded(list(trials.all(trainings)), mechanism)
    if found is None:
        say("the mechanism: too few trainings with canaries for a bound")
        return
    is_bounded, small = _bounded(claim) is not None, min(SMALL_DELTA, claim.delta)
    for attack, value, accounted, delta in (
        (f"every sum watched ({found.score})", found.by_rates, claim.epsilon, claim.delta),
        (
            "the same, however games hang together",
            found.by_one_run,
            epsilon([claim.cost], small),
            small,
        ),
    ):
        yield Line(
            part="mechanism", model=f"private rounds as at {claim.site}", attack=attack,
            metric=EPSILON, value=value, accounted=accounted if is_bounded else None, delta=delta,
            n=found.games,
        )  # fmt: skip


def _by_people(
    subject: Subject, people: People, folder: Path, asked: Asked, clock: Clock, remarks: list[str]
) -> Iterator[Line]:
    study = subject.study
    sorts = (True, False) if study.privacy.is_private else (False,)
    if "membership" in asked.parts:
        if why := why_none(study):
            if asked.parts == ("membership",):
                raise SettingError(f"membership cannot be attacked: {why}")
            remarks.append(f"membership was not attacked: {why}")
        else:
            for private in sorts:
                found = shadows(
                    study, people, folder / "shadows", number=asked.shadows, seed=asked.seed,
                    clock=clock, private=private,
                )  # fmt: skip
                yield from _membership(subject, people, found, private=private, remarks=remarks)
    if "inversion" in asked.parts:
        try:
            yield from _inversion(subject, people, folder, asked, clock)
        except SettingError as error:
            if asked.parts == ("inversion",):
                raise
            remarks.append(f"gradients were not inverted: {error}")


def _sort(*, private: bool) -> str:
    return "the study" if private else "the study without [privacy]"


def _membership(
    subject: Subject, people: People, found: Shadows, *, private: bool, remarks: list[str]
) -> Iterator[Line]:
    """Four attacks on shadows, and two on the finished model where its people are at hand."""
    is_private = subject.study.privacy.is_private
    if len(found.said) < FEWEST:
        remarks.append(
            f"{len(found.said)} shadows of {_sort(private=private)} are there; {FEWEST} are needed "
            "for a figure"
        )
        return
    model = f"{len(found.said)} shadows of {_sort(private=private or not is_private)}"
    plain, scores = ~found.canaries, likelihoods(found)
    for attack, score, whom in (
        ("likelihood ratio", scores, plain),
        ("threshold on the loss", losses(found), plain),
        ("loss beside other shadows'", calibrated(found), plain),
        ("false labels, likelihood ratio", scores, found.canaries),
    ):
        told = attacked(score, found, whom, CONFIDENCE, OF_EACH)
        yield from _figures(told, model, attack, found if private else None)
    if private == is_private:
        yield from _finished(subject, people, found)


def _figures(told: Attack, model: str, attack: str, costs: Shadows | None) -> Iterator[Line]:
    def line(metric: str, value: float, **more: float | None) -> Line:
        return Line(
            part="membership", model=model, attack=attack, metric=metric, value=value, n=told.n,
            **more,
        )  # fmt: skip

    yield line("AUC", told.auc.value, ci_low=told.auc.low, ci_high=told.auc.high)
    for rate, hits in told.hits.items():
        metric = f"TPR at {100 * rate:g} % FPR"
        yield line(metric, hits.value, ci_low=hits.low, ci_high=hits.high)
    accounted = float(costs.epsilon.max()) if costs is not None else np.inf
    yield line(
        EPSILON, told.epsilon, accounted=accounted if isfinite(accounted) else None,
        delta=SMALL_DELTA,
    )  # fmt: skip


def _finished(subject: Subject, people: People, found: Shadows) -> Iterator[Line]:
    """The finished model itself, where the auditor holds people of its training sites."""
    study = subject.study
    member, known = np.zeros(people.number, bool), np.zeros(people.number, bool)
    for site, cohort, numbers in zip(people.sites, people.cohorts, people.numbers, strict=True):
        if not people.made and site.name in study.sites.train:
            known[numbers] = True
            member[numbers[cohort.indices("train", study.splits)]] = True
    known &= ~found.canaries
    if min((member & known).sum(), (~member & known).sum()) < _FEWEST_JUDGED:
        return
    said = says(study, Stored(subject.run.federated.final, "model/").all(), people)
    others = losses(found).mean(axis=0)
    for attack, scores in (
        ("likelihood ratio", ratios(found, said, np.ones(len(found.said), bool))),
        ("loss beside shadows'", minus_loss(found.targets, said) - others),
    ):
        told = area(scores[known], member[known], CONFIDENCE)
        yield Line(
            part="membership", model="the finished model", attack=attack, metric="AUC",
            value=told.value, ci_low=told.low, ci_high=told.high, n=int(known.sum()),
        )  # fmt: skip


def _inversion(
    subject: Subject, people: People, folder: Path, asked: Asked, clock: Clock
) -> Iterator[Line]:
    """A few people of the largest site, each by every way in which something of her leaves."""
    study = subject.study
    arrays = Stored(subject.run.federated.final, "model/").all()
    cohort = max(people.cohorts, key=len)
    chance = np.random.default_rng(seed_of(asked.seed, "inversion"))
    whom = _one_scan_each(cohort, chance)[: asked.inverted]
    stage, recipe = scene(study, cohort, arrays), _recipe(subject, asked.seed)
    privacy = study.privacy if study.privacy.is_private else None
    ways: dict[tuple[str, str], Callable[[int, int], float]] = {
        ("her gradient", "without [privacy]"): lambda i, s: inverted(stage, i, None, s),
        ("her gradient", "private"): lambda i, s: inverted(stage, i, privacy, s),
        ("a whole round", "without [privacy]"):
            lambda i, s: inverted_round(stage, i, None, recipe, s),
        ("a whole round", "private"): lambda i, s: inverted_round(stage, i, privacy, recipe, s),
    }  # fmt: skip
    for (what, sort), way in ways.items():
        if sort == "private" and privacy is None:
            continue
        trials = Trials(
            folder / "inversion",
            f"{what} {sort}".replace(" ", "-").replace("[", "").replace("]", ""),
        )

        def one(n: int, way: Callable[[int, int], float] = way) -> Arrays:
            return {"error": np.array([way(int(whom[n]), seed_of(asked.seed, "start", n))])}

        trials.play(f"inverting {what}, {sort}", len(whom), one, clock)
        errors = [float(found["error"][0]) for found in trials.all(len(whom))]
        if errors:
            yield Line(
                part="inversion", model=sort, attack=f"from {what}, {sort}",
                metric="median (least to most)", value=float(np.median(errors)),
                ci_low=min(errors), ci_high=max(errors), n=len(errors),
            )  # fmt: skip


def _one_scan_each(cohort: Cohort, chance: np.random.Generator) -> NDArray[np.int64]:
    """A sample of each person, people in a drawn order."""
    _, first = np.unique(np.asarray(cohort.participants), return_index=True)
    return chance.permutation(first).astype(np.int64)


def _recipe(subject: Subject, seed: int) -> Recipe:
    """The last round of the study."""
    steps = subject.study.pretraining
    passes = max(1, steps.local_epochs)
    return Recipe(
        steps=steps, rate=steps.learning_rate, weight_decay=steps.weight_decay,
        first=max(0, (steps.rounds - 1) * passes), epochs=passes, of=max(1, steps.rounds) * passes,
        seed=seed, proximal_mu=steps.proximal_mu,
    )  # fmt: skip
