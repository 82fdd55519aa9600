"""What is audited: a finished run or a release, and what each training site was told it costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import FolderError
from common.privacy.cost import Cost
from common.privacy.plan import Plan, plan_for
from common.study import Study, with_plugins
from deploy.audit.mechanism import MOST_CANARIES, Mechanism
from deploy.releases.release import MANIFEST
from server.privacy_plan import people_of
from server.report import participation
from server.report.privacy import Paid, paid
from server.run import Run, read_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What all private rounds cost each participant of one site, at most: the upper bound.

    passes: over the site's people, in all orders together; of a release as many as were planned.
    """

    site: str
    people: int
    cost: Cost
    passes: int
    epsilon: float

    @property
    def delta(self) -> float:
        """Chance that the bound does not hold."""
        return self.cost.delta


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A finished model, its study with plug-ins loaded, and the claims of a private one."""

    run: Run
    study: Study
    claims: tuple[Claim, ...]

    @property
    def is_release(self) -> bool:
        """Whether nothing may be added to its folder."""
        return (self.run.folder / MANIFEST).exists()

    @property
    def dearest(self) -> Claim | None:
        """The claim of the site whose participants paid most; None without privacy."""
        return max(self.claims, key=lambda claim: claim.epsilon, default=None)

    def mechanism(self, claim: Claim) -> Mechanism:
        """Private training as that site's participants met it."""
        return Mechanism(
            privacy=self.study.privacy,
            people=claim.people,
            passes=claim.passes,
            delta=claim.delta,
            steps=self.study.pretraining,
        )


def read_subject(folder: Path) -> Subject:
    """Open a finished run or a release for an audit.

    Raises
    ------
    FolderError
        If it is neither, not finished, or lacks what its claims are computed from.
    """
    if not folder.is_dir():
        raise FolderError(f"{folder} is no folder; a finished run or a release is needed")
    run = read_run(folder)
    if not run.federated.final.exists():
        raise FolderError(f"{folder} is not finished; its own command goes on")
    study = with_plugins(run.study)
    return Subject(run=run, study=study, claims=tuple(_claims(run, study)))


def _claims(run: Run, study: Study) -> list[Claim]:
    if not study.privacy.is_private or not study.pretraining.rounds:
        return []
    branches = {branch.model: participation.records(branch) for branch in run.branches()}
    by_site: dict[str, list[Paid]] = {}
    for one in paid(branches):
        by_site.setdefault(one.site, []).append(one)
    if by_site:
        return [_claimed(study, site, orders) for site, orders in by_site.items()]
    return [_planned(study, site, n) for site, n in _counted(run, study).items()]


def _claimed(study: Study, site: str, orders: list[Paid]) -> Claim:
    """By what the site declared with each order."""
    last, steps = orders[-1], sum(order.steps for order in orders)
    privacy = study.privacy
    # whoever draws everybody has as many people as one likes: their number changes no step
    most = min(privacy.people_per_step, MOST_CANARIES)
    people = round(privacy.people_per_step / last.rate) if last.rate < 1 else most
    return Claim(
        site=site, people=people, passes=max(1, round(steps / privacy.steps(people))),
        epsilon=last.epsilon,
        cost=Cost(noise=last.noise, rate=last.rate, steps=steps, delta=last.delta),
    )  # fmt: skip


def _planned(study: Study, site: str, people: int) -> Claim:
    """By what the study asks of a site of so many participants."""
    plan: Plan = plan_for(study, people)
    return Claim(
        site=site, people=plan.learners, passes=study.pretraining.local_epochs * plan.orders,
        epsilon=plan.after(plan.orders),
        cost=plan.cost.model_copy(update={"steps": plan.cost.steps * plan.orders}),
    )  # fmt: skip


def _counted(run: Run, study: Study) -> dict[str, int]:
    """People of each training site, by the census."""
    path = run.folder / "census.json"
    if not path.exists():
        raise FolderError(
            f"{run.folder} has neither rounds nor {path.name}: what its private rounds cost "
            "is not known; audit the run itself, or a release that was made with it"
        )
    found = people_of(study, participation.census(run))
    few = {site: n for site, n in found.items() if n >= 2}
    if not few:
        raise FolderError(f"{path} counts nobody at any training site; audit the run itself")
    return few
