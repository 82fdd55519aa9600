"""What a study would ask of this site, let out of it and cost it, in words: what one approves.

Only the site's own files are read, never its data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from client.authority import spendings
from client.authority.ledger import read_ledger
from client.secure_sums.peers import number_of
from client.site import Site
from common import label_sums
from common.comparisons import is_shared
from common.errors import SettingError
from common.explain import travelling_bytes
from common.network.buildable import check_networks
from common.network.building import plan_of
from common.network.plan import Plan
from common.network.settling import constants
from common.network.size import Limits, outline
from common.privacy.coverage import departures
from common.privacy.plan import plan_for
from common.schemes import Protocol
from common.study import Study


@dataclass(frozen=True, slots=True)
class Consent:
    """The consequences for one site, a sentence a line, and the size of a training report."""

    lines: tuple[str, ...]
    report_bytes: int


def consent(site: Site, study: Study, scans: int = 0, people: int = 0) -> Consent:
    """Say what approving `study` means for `site`; of so many `scans` and `people`, if known.

    Raises
    ------
    SettingError
        If the site can have no part in the study as both are written.
    """
    _check_part(site, study)
    limits = limits_of(site)
    check_networks(study, limits)
    network = outline(study, most=limits.network)
    plan = plan_of(network, study.aggregation.normalisation)
    size = travelling_bytes(plan)
    lines = [f"this site: {site.name}, {_part(site, study)}", *_targets(site, study)]
    if study.start is not None:
        lines.append(
            f"begins from {study.start.study} ({study.start.take}), to which "
            f"{', '.join(study.start.contributors)} contributed"
        )
    if site.person_column:
        lines.append(
            f"leaves with those tokens (overlap): one for each person's {site.person_column}, made "
            "with overlap_key, which the coordinator must not know"
        )
    if site.role == "train":
        lines += [*_training(study, plan, size, constants(network)), *_exposures(site, study)]
        lines += [*_privacy(site, study, people), *_secure(site, study)]
        lines += _risks(study, scans)
    else:
        lines += [*_judging(), *_judgements(site, study)]
        own = study.protocols_at(site.role)
        lines += [
            *(_of_protocol(study, one) for one in own),
            *(_exposures(site, study) if own else ()),
        ]
    lines += _refused(site, study, size, settled=bool(constants(network) or _numbers(study)))
    lines.append(
        "leaves with each report: how many seconds the work took, and which of the arrays that "
        "came with the order need not come again"
    )
    lines.append(
        f"small cells: a measurement of fewer than {site.policy.minimum_support} participants "
        "loses its value, sums over fewer people stay here"
    )
    lines.append(
        f"small cohorts: fewer than {site.policy.minimum_cohort} participants take no part"
    )
    lines.append(f"hours: {', '.join(site.policy.hours) or 'always'} (local time)")
    return Consent(tuple(lines), size)


def limits_of(site: Site) -> Limits:
    """How large a network, and a step of training, the site's policy lets a study ask for."""
    return Limits(network=site.policy.largest_network, step_gb=site.policy.largest_step_gb)


def check_data_kind(site: Site, study: Study) -> None:
    """Refuse a study about another kind of data than the site's."""
    kind, own = study.kind_name, site.data.kind  # type: ignore[attr-defined]
    if kind != own:
        raise SettingError(
            f'{study.name} is about data of kind "{kind}"; data.kind is "{own}" ({site.file})'
        )


def _check_part(site: Site, study: Study) -> None:
    check_data_kind(site, study)
    if site.name in study.sites.train and site.role == "heldout":
        raise SettingError(
            f'{study.name} wants {site.name} to train; role is "heldout" and the site decides '
            f"({site.file})"
        )
    if site.name not in study.sites.train and site.role == "train":
        listed = "holds it out" if site.name in study.sites.heldout else "does not name it"
        raise SettingError(f'role of {site.name} is "train"; {study.name} {listed} ({site.file})')


def _part(site: Site, study: Study) -> str:
    if site.role == "train":
        return "contributes to the weights"
    named = "" if site.name in study.sites.heldout else "; the study does not name it"
    return f"judges the result and never contributes{named}"


def _targets(site: Site, study: Study) -> Iterator[str]:
    held = [
        f"{name} from {site.targets[name].place}" for name in study.targets if name in site.targets
    ]
    lacking = [name for name in study.targets if name not in site.targets]
    yield f"targets held: {', '.join(held) or 'none'}"
    if lacking:
        yield f"targets not held: {', '.join(lacking)}; their heads are left to others"


def _training(study: Study, plan: Plan, size: int, settled: set[str]) -> Iterator[str]:
    yield (
        "leaves once (census): how many scans, people and labels of each target there are, a "
        "fingerprint of all scans together"
    )
    yield _OVERLAP
    if settled:
        yield (
            f"leaves before the first round of each model (settle): sums over all training scans, "
            f"of which the network's constants are made: {', '.join(sorted(settled))}"
        )
    if numbers := _numbers(study):
        yield (
            f"leaves once (settle): sum and count of the training labels of {', '.join(numbers)}, "
            "and how many lie where, in runs of no fewer people than any number that leaves"
        )
    if study.evaluation.shortcuts:
        yield (
            f"leaves after training (settle): sums over training and over validation people of "
            f"{study.evaluation.shortcuts} numbers of each, and of their products, by which sites "
            "are told apart"
        )
    travelling = sum(rule.travels for rule in plan.values())
    own = sum(rule.kept for rule in plan.values())
    stay = f"; {own} are the site's own" if own else ""
    lost = "validation losses" if study.privacy.is_private else "losses"
    masked = "; all of these under masks, so that only sums over sites are seen"
    yield (
        f"leaves in each round (train): {travelling} arrays of the network trained here, "
        f"{size / 1e6:.2f} MB{stay}; how many scans, people and labels were used; the sums that "
        f"{lost} and validation metrics are made of{masked * study.secure_sums.on}"
    )
    for task in (task for task in study.finetuning if task.repeats):
        yield (
            f"leaves after fine-tuning {task.name} ({', '.join(task.methods)}): metrics on this "
            "site's test participants with their intervals, no arrays; the tuned models stay here"
        )
        if "explain" in task.then:
            yield (
                f"leaves after that, if policy.orders has explain: a map of where the tuned "
                f"networks of {task.name} look, the mean over test participants, and means over "
                "them of how faithful such maps are"
            )
        if "send" in task.then:
            yield (
                f"leaves after that, if policy.orders has send: ALL THAT TUNING TRAINED for "
                f"{task.name}, from this site's participants alone"
            )

        if "cross" in task.then:
            yield (
                f"leaves after that, if policy.orders has cross: metrics of the heads for "
                f"{task.name} that other sites sent, on this site's test participants; a head that "
                "this one sends (policy.orders has send) is judged at the others"
            )

    for protocol in study.protocols_at("train"):
        yield _of_protocol(study, protocol)


def _of_protocol(study: Study, protocol: Protocol) -> str:
    """How many numbers about overlapping draws of the same people there will be."""
    ways, sizes = study.task_of(protocol).methods, len(protocol.counts)
    own = (
        "this site, which judges, learns from some of its own people, for itself alone, and "
        if protocol.at == "heldout"
        else ""
    )
    return (
        f"{own}leaves after the protocol {protocol.name}, for each of {len(ways)} ways and {sizes} "
        f"sizes: a metric of each of {protocol.total} draws of people, where enough of them judge "
        f"in it, and over all draws their median, mean and differences; {len(ways) * sizes} "
        f"orders, {len(ways) * sizes * protocol.total:,} draws in all. Who is in which draw hangs "
        "on a secret of this site's; the models are not kept"
    )


_OVERLAP = (
    "leaves once (overlap): a token for each scan and which of them are one person's, by which "
    "scans that two sites share are counted; whoever has a scan bit for bit can make its token"
)


def _judging() -> Iterator[str]:
    yield (
        "leaves once (census): how many scans, people and labels of each target there are, a "
        "fingerprint of all scans together"
    )
    yield _OVERLAP
    yield (
        "leaves for each model (evaluate): metrics with their intervals, in three figures; no "
        "arrays"
    )


def _judgements(site: Site, study: Study) -> Iterator[str]:
    """How many numbers about the same people there can be in the end."""
    most, models = site.policy.most_judgements, len(study.models)
    if not most:
        yield "limit: none (policy.most_judgements is 0)"
        return
    yield (
        f"limit: each of {models} models in {most} runs, {most * models} orders at most "
        "(policy.most_judgements)"
    )


def _risks(study: Study, scans: int) -> Iterator[str]:
    """Steps so small, or so large, that an update is nearly somebody's row."""
    size = study.pretraining.batch_size
    if (study.privacy.is_private and study.privacy.noise) or study.secure_sums.on:
        return
    if size == 1:
        yield (
            "WARNING: steps of one scan each; what is trained here then holds single people's "
            "scans, and only differential privacy or secure sums would hide them"
        )
    if scans and size >= scans:
        yield (
            f"WARNING: a step takes {size} scans and this site has {scans}; one step over all of "
            "them is a sum that crafted arrays can take apart, person by person"
        )


def _privacy(site: Site, study: Study, people: int) -> Iterator[str]:
    """What rounds of private training would cost each participant, and what would be left."""
    privacy = study.privacy
    if not privacy.has_cost:
        return
    spent = list(read_ledger(site.state / "ledger.sqlite").private)
    cap = site.policy.epsilon
    limit = f"policy.epsilon is {cap:g}" if cap else "policy.epsilon sets no limit"
    if people:
        plan = plan_for(study, people)
        run = plan.cost.model_copy(update={"steps": plan.cost.steps * max(1, plan.orders)})
        own, every = (spendings.of_study(spent, study.digest, run), spendings.lifetime(spent, run))
        yield (
            f"privacy would cost in one run: epsilon {plan.after(plan.orders):.3g} at delta "
            f"{plan.cost.delta:.2g}, in {plan.orders} orders of {plan.cost.steps} steps, where "
            f"about {plan.learners} of {people} participants train"
        )
        if own > (privacy.epsilon or inf) or every > (cap or inf):
            yield (
                "  that is more than is left: after some orders the site declines with "
                "BUDGET_EXHAUSTED, and the run goes on without it"
            )
    so_far = f"{spendings.lifetime(spent):.3g} so far" if spent else "nothing so far"
    own_limit = f"epsilon {privacy.epsilon:g}" if privacy.epsilon else "no epsilon"
    yield f"limit: {own_limit} for this study; over all studies {limit}, {so_far}"
    yield from (one.told for one in departures(study))


def _secure(site: Site, study: Study) -> Iterator[str]:
    """Whom this site would add up with, and what it enforces since nobody else can."""
    sums, sites = study.secure_sums, len(study.sites.train)
    if not sums.on:
        return
    if not study.privacy.has_cost:
        yield from (one.told for one in departures(study))
    yield (
        f"secure sums: the coordinator learns sums over {sums.fewest(sites)} or more of {sites} "
        f"sites, never this site's own update, losses or counts of a round; it would take more "
        f"than {sums.colluders(sites)} other sites on its side to see more"
    )
    yield (
        f"enforced here: no number may change by more than {sums.largest_update:g} in a round "
        "(UPDATE_TOO_LARGE), the whole update by more than policy.largest_update_norm (EGRESS)"
    )
    try:
        number = number_of(site, study)
    except SettingError as error:
        yield f"refused with PEERS until it is mended: {error}"
        return
    yield f"number of the identities of {', '.join(sorted(study.sites.train))}: {number}"
    yield (
        "  approving says that each of them reads the same number to you: who could put in an "
        "identity of his own would see what is meant for that site"
    )


def _numbers(study: Study) -> list[str]:
    """Targets whose training labels are added up, for the constants that models must beat."""
    return list(label_sums.numbers(study)) if study.evaluation.baselines else []


def _exposures(site: Site, study: Study) -> Iterator[str]:
    """How often the participants would be learnt from, and how often they still may be."""
    trains = site.role == "train"
    rounds = study.pretraining.rounds if trains else 0
    alone = rounds if study.comparisons.single_site and len(study.sites.train) > 1 else 0
    some = rounds * len(study.comparisons.targets)
    tasks = sum(
        len(task.methods) * max(1, len(task.participants))
        for task in study.finetuning
        if task.repeats and trains
    )
    crossed = sum(
        is_shared(*way.rpartition("/")[::2]) * max(1, len(task.participants))
        for task in study.finetuning
        for way in task.methods
        if "cross" in task.then and trains
    )
    own = study.protocols_at(site.role)
    compared = sum(len(study.task_of(one).methods) * len(one.counts) for one in own)
    more = rounds * (len(study.comparisons.members) - 1)
    parts = {
        "rounds": rounds, "for models by other seeds": more,
        "for a model of this site alone": alone, "for models of some targets": some,
        "of fine-tuning": tasks, "of heads from elsewhere": crossed, "of protocols": compared,
    }  # fmt: skip
    counted = ", ".join(f"{n} {what}" for what, n in parts.items() if n)
    asked = sum(n for n in parts.values())
    yield f"training orders in one run: {asked} ({counted})"
    spent = read_ledger(site.state / "ledger.sqlite").spent
    most = site.policy.most_exposures
    if not most:
        yield f"limit: none (policy.most_exposures is 0); {spent} carried out so far"
        return
    left = max(0, most - spent)
    yield f"limit: {most} over all studies and runs (policy.most_exposures), {left} left"
    if left < asked:
        yield f"  this study asks for more: after {left} the site refuses with PRIVACY_SPENT"


def _refused(site: Site, study: Study, size: int, *, settled: bool) -> Iterator[str]:
    """What the study would ask for and the policy refuses."""
    policy = site.policy
    wanted = {"census", "overlap", "train" if site.role == "train" else "evaluate"}
    if study.secure_sums.on and site.role == "train":
        wanted |= {"keys", "shares", "unmask"}
    wanted |= {"protocol" for _ in study.protocols_at(site.role)}
    if site.role == "train":
        wanted |= {"finetune" for task in study.finetuning if task.repeats}
        wanted |= {kind for task in study.finetuning for kind in task.then}
        wanted |= {"settle"} if settled else set()
    missing = sorted(wanted - set(policy.orders))
    if missing:
        yield f"refused with POLICY: {', '.join(missing)} (policy.orders)"
    if site.role == "train" and policy.secure_sums_only and not study.secure_sums.on:
        yield "refused with POLICY: train, whose updates are seen (policy.secure_sums_only)"
    if site.role == "train" and size > policy.largest_report_bytes:
        yield (
            f"refused with REPORT_TOO_LARGE: train, {size / 1e6:.2f} MB "
            f"(policy.largest_report_mb is {policy.largest_report_mb:g})"
        )
