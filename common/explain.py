"""A study in words: what each site will be asked to do, what will be compared, what will travel."""

from __future__ import annotations

import math
import sys
from typing import Final

from pydantic import BaseModel

from common.network.building import plan_of
from common.network.plan import Plan
from common.network.size import outline
from common.privacy.coverage import departures
from common.privacy.site_level import deviation
from common.privacy.way import way_of
from common.protocol.code import agreed_digest
from common.sections import FineTuning
from common.study import Study

_PLACES: Final = {"train": "training", "heldout": "held-out"}


def explain(study: Study) -> str:
    """Sentences about a study that was checked to be buildable."""
    plan = plan_of(outline(study, most=sys.maxsize), study.aggregation.normalisation)
    numbers = sum(math.prod(rule.shape) for rule in plan.values())
    settings, sites = study.pretraining, study.sites
    targets = ", ".join(_target(study, name) for name in study.pretraining_targets)
    prox = f", FedProx with mu {settings.proximal_mu}" if settings.proximal_mu else ""
    lines = [
        f"study {study.name}, digest {study.digest}",
        f"code: {agreed_digest(study)[:12]}, the same at every site that takes part",
        f"data: {_plugged(study.data, 'kind')}, one sample is {'x'.join(map(str, study.shape))}",
        f"pretraining targets: {targets or 'none'}",
        f"network: {_plugged(study.backbone, 'name')} with {numbers:,} numbers",
        f"wire: {travelling_bytes(plan) / 1e6:.2f} MB travel from each site in each round",
        f"sites that train: {', '.join(sites.train)}; a round counts with {study.quorum} of them",
        f"sites that judge: {', '.join(sites.heldout) or 'none'}",
        *_start(study),
        f"rounds: {settings.rounds}, each {settings.local_epochs} pass(es)",
        f"steps: {_batches(study)}, {settings.optimiser}, {settings.learning_rate}",
        f"aggregation: {study.aggregation.server_optimiser}{prox}, by {study.aggregation.weight}",
        f"normalisation: {study.aggregation.normalisation}",
        f"comparisons: {', '.join(_comparisons(study)) or 'none'}",
    ]
    lines += [
        f"fine-tuning {task.name}: each training site learns {task.target} by "
        f"{', '.join(task.methods)}, {_extent(task)}"
        for task in study.finetuning
        if task.repeats
    ]
    lines += [
        f"protocol {protocol.name}: each {_PLACES[protocol.at]} site compares "
        f"{', '.join(study.task_of(protocol).methods)} for {protocol.task}, {protocol.total} "
        f"times {protocol.told}"
        f"{', labels dealt out anew' if protocol.shuffled else ''}"
        f"{', its own people, who are in no model' if protocol.at == 'heldout' else ''}"
        for protocol in study.protocols
    ]
    splits = study.splits
    rest = 1 - splits.test - splits.validation
    spared = f", {rest * (1 - splits.share):.0%} are not used" if splits.share < 1 else ""
    lines.append(
        f"participants: {rest * splits.share:.0%} train, {splits.validation:.0%} choose, "
        f"{splits.test:.0%} are kept for fine-tuning's test{spared}"
    )
    return "\n".join([*lines, *_privacy(study, plan), *_secure(study)])


def travelling_bytes(plan: Plan) -> int:
    """Bytes of the arrays in one training report."""
    return sum(rule.nbytes for rule in plan.values() if rule.travels)


def _batches(study: Study) -> str:
    if study.privacy.is_private:
        return f"people drawn by chance, {study.privacy.people_per_step} on average"
    return f"batches of {study.pretraining.batch_size}"


def _privacy(study: Study, plan: Plan) -> list[str]:
    """By what mechanism people are hidden, and what of all that leaves is not."""
    privacy = study.privacy
    if privacy.hides_sites:
        return [
            (
                f"privacy: of each site as a whole; its update is cut down to {privacy.clip:g}, "
                f"and noise of {privacy.noise:g} times that is in every sum that can be had with "
                f"one site's help, {deviation(study):.3g} a number from each; all weigh alike"
            ),
            *(["WARNING: privacy.noise is 0: updates are cut down, and no site is hidden"]
              if not privacy.noise else []),
            *(one.told for one in departures(study)),
        ]  # fmt: skip
    if not privacy.is_private:
        whose = "the sum of all updates" if study.secure_sums.on else "an update"
        return [f"privacy: none; {whose} may show single participants"]
    scans = f"at most {privacy.scans_per_person}" if privacy.scans_per_person else "all"
    return [
        (
            f"privacy: of each participant with {scans} of her scans in a step; gradients cut "
            f"down to {privacy.clip:g} ({privacy.clipping}), noise of {privacy.noise:g} times "
            "that; who is drawn and the noise are secret, so that no run gives the same bits again"
        ),
        f"gradients by person: {way_of(study).told}",
        *_short(study, plan),
        *(one.told for one in departures(study)),
    ]


def _secure(study: Study) -> list[str]:
    """What the coordinator sees of rounds, and what it would take to see more."""
    sums, sites = study.secure_sums, len(study.sites.train)
    if not sums.on:
        return []
    most, fewest = sums.colluders(sites), sums.fewest(sites)
    plotting = (
        f"and with up to {most} sites on its side over {sums.hidden_among(sites, most)} others"
        if most
        else "and no site may be on its side"
    )
    own = [] if study.privacy.has_cost else [one.told for one in departures(study)]
    return [
        (
            f"secure sums: the coordinator sees sums over {fewest} or more of {sites} sites, never "
            f"one site's update; if it lies, over {sums.hidden_among(sites)} or more, {plotting}"
        ),
        (
            f"enforced by the sites, since nobody else can: no number changes by more than "
            f"{sums.largest_update:g} in a round; lengths of single updates are not compared, and "
            "one site that sends nonsense spoils a round, which then changes nothing"
        ),
        *own,
    ]


def _short(study: Study, plan: Plan) -> list[str]:
    """What makes noise pointless, or steps shorter than anyone meant."""
    privacy, most = study.privacy, study.pretraining.gradient_clip
    if not privacy.noise:
        return ["WARNING: privacy.noise is 0: gradients are cut down, and nobody is protected"]
    learnt = (rule for rule in plan.values() if rule.travels and rule.role == "parameter")
    numbers = sum(math.prod(rule.shape) for rule in learnt)
    noise = privacy.noise * privacy.clip * math.sqrt(numbers) / privacy.people_per_step
    if not 0 < most < noise:
        return []
    return [
        f"WARNING: pretraining.gradient_clip is {most:g}; noise of {noise:.3g} shortens each step"
    ]


def _start(study: Study) -> list[str]:
    start = study.start
    if start is None:
        return []
    what = "all arrays" if start.take == "all" else "the backbone"
    whose = ", ".join(start.contributors)
    return [f"begins from: {what} of {start.study}, to which {whose} contributed"]


def _extent(task: FineTuning) -> str:
    """How much of it: settings of the grid, people, repeats."""
    parts = [f"{len(task.learning_rates) * len(task.weight_decays)} settings"]
    if task.participants:
        people = ", ".join(map(str, task.participants))
        parts.append(f"from {people} participants, drawn {task.draws} times")
    if task.repeats > 1:
        parts.append(f"{task.repeats} repeats")
    return ", ".join(parts)


def _plugged(settings: BaseModel, key: str) -> str:
    return str(getattr(settings, key))


def _target(study: Study, name: str) -> str:
    target = study.targets[name]
    about = target.unit if target.kind == "regression" else " or ".join(target.classes)
    return f"{name} ({about or target.kind})"


def _comparisons(study: Study) -> list[str]:
    wanted = study.comparisons
    single = [f"one model for each of {len(study.sites.train)} sites"] if wanted.single_site else []
    pooled = ["one of pooled data (local engine only)"] if wanted.pooled else []
    some = [f"{name}, which learns {', '.join(study.learnt_by(name))} alone"
            for name in sorted(wanted.targets)]  # fmt: skip
    return [*single, *pooled, *some]
