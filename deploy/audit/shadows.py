"""Shadow models: the study trained again and again on random halves of the auditor's people.

Each shadow is a run of the audited study by the local engine, rounds, constants and all, where the
auditor's sites train and nobody judges. What it says of every person, in or out, is kept; the run
is not. A few people are canaries: their labels are false in each shadow that they are in.

Letters in shapes: K shadows, P people, O outputs of the network that are looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.learning.prediction import predict
from client.learning.training import choose_device
from client.service.agent import Agent
from common.arrays import Arrays
from common.errors import SettingError
from common.network.building import build, load_arrays
from common.privacy.accounting import epsilon
from common.privacy.cost import Cost
from common.protocol.wire import Stored
from common.runtime.progress import hushed
from common.sections import Target
from common.seeding import seed_of
from common.study import Study, parse_study
from common.target_transform import transformed
from deploy.audit.bounds import SMALL_DELTA
from deploy.audit.people import People
from deploy.audit.trials import Clock, Trials
from deploy.local import run_phases
from server.report import participation
from server.report.privacy import Paid, paid
from server.run import open_run

_CANARIES: Final = 0.1  # of the people
_FEWEST_CANARIES: Final = 10
_FAR: Final = 1e6  # deviations: a training that ran away says no more than that
_SURE: Final = 1e-12  # of a probability's distance from 0 and 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadows:
    """What K shadows said of P people.

    said: (K, P, O), per target how far a prediction lies from the label, in the study's scale, or
    the log-odds of the true class; NaN without a label. inside: (K, P). canaries: (P,).
    epsilon: (K,), what each shadow's private rounds cost at most, at `SMALL_DELTA`; 0 without.
    """

    targets: tuple[Target, ...]
    said: NDArray[np.float64]
    inside: NDArray[np.bool_]
    canaries: NDArray[np.bool_]
    epsilon: NDArray[np.float64]


def why_none(study: Study) -> str:
    """Why a study cannot be trained again on an auditor's people; empty if it can."""
    if study.start is not None:
        return "the study begins from a checkpoint, which a release does not hold"
    if not study.learns_from_labels:
        return "the network predicts no label, so nothing of one person is compared"
    return ""


def shadows(
    study: Study,
    people: People,
    folder: Path,
    *,
    number: int,
    seed: int,
    clock: Clock,
    private: bool,
) -> Shadows:
    """Train what is not there of `number` shadows in `folder`, and read them all."""
    shadow = shadow_study(study, people, private=private)
    flipped = canaries(people, seed)
    told = people.with_false_labels(study, flipped)
    trials = Trials(folder, "private" if private else "plain")

    def one(n: int) -> Arrays:
        coins = np.random.default_rng(seed_of(seed, "shadow", n))
        return _trained(shadow, told, coins.random(people.number) < 0.5, folder / "now")

    title = f"shadows {'with' if private else 'without'} privacy"
    trials.play(title, number, one, clock)
    played = list(trials.all(number))
    names = shadow.pretraining_targets
    empty = np.empty((0, people.number, len(names)))
    return Shadows(
        targets=tuple(names.values()),
        said=np.array([one["said"] for one in played]) if played else empty,
        inside=np.array([one["inside"] > 0 for one in played]) if played else empty[..., 0] > 0,
        canaries=flipped,
        epsilon=np.array([float(one["epsilon"][0]) for one in played]),
    )


def shadow_study(study: Study, people: People, *, private: bool) -> Study:
    """The audited study, where the auditor's sites train alone, on all people given, and no more.

    Raises
    ------
    SettingError
        If it cannot be trained again.
    """
    if why := why_none(study):
        raise SettingError(why)
    table = study.model_dump(mode="json")
    privacy = {"privacy": {**table["privacy"], "epsilon": 0.0}} if private else {"privacy": {}}
    return parse_study(
        {
            **table, **privacy, "start": None,
            "sites": {"train": [site.name for site in people.sites], "quorum": 1},
            "splits": {**table["splits"], "validation": 0.0, "test": 0.0, "share": 1.0},
            "comparisons": {"single_site": False, "pooled": False},
            "evaluation": {"baselines": False, "head": False, "shortcuts": 0},
            "finetuning": [], "protocols": [],
            "objective": {**table["objective"], "targets": sorted(study.pretraining_targets)},
        },
        Path(f"{study.name}.json"),
    )  # fmt: skip


def canaries(people: People, seed: int) -> NDArray[np.bool_]:
    """(P,) whose labels are false."""
    number = max(_FEWEST_CANARIES, round(_CANARIES * people.number))
    chosen = np.random.default_rng(seed_of(seed, "canaries")).permutation(people.number)[:number]
    return np.isin(np.arange(people.number), chosen)


def says(study: Study, arrays: Mapping[str, NDArray[Any]], people: People) -> NDArray[np.float64]:
    """(P, O) what a network with these arrays says of each person."""
    network = build(study, seed=0)
    load_arrays(network, arrays)
    found = []
    for site, cohort in zip(people.sites, people.cohorts, strict=True):
        everyone = np.arange(len(cohort))
        predicted = predict(network, cohort, everyone, choose_device(site.device.kind))
        found.append(_compared(study.pretraining_targets, cohort, predicted))
    return people.by_person(found)


def _trained(study: Study, people: People, inside: NDArray[np.bool_], folder: Path) -> Arrays:
    """One run, from an empty folder: half of one that was killed is of other draws."""
    shutil.rmtree(folder, ignore_errors=True)
    with open_run(folder, study):
        pass
    agents = [
        Agent(site, study, cohort, keeps_training=False)
        for site, cohort in zip(people.sites, people.where(inside), strict=True)
    ]
    with hushed():  # a hundred runs would say the same of the same people
        run_phases(agents, folder, workers=None)
    with open_run(folder, study) as run:
        records = {branch.model: participation.records(branch) for branch in run.branches()}
        arrays = Stored(run.federated.final, "model/").all()
        said = says(study, arrays, people)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "said": said, "inside": inside.astype(np.int32),
        "epsilon": np.array([_dearest(list(paid(records)))]),
    }  # fmt: skip


def _dearest(orders: Sequence[Paid]) -> float:
    """What the participants paid of the site where it was most."""
    sites = {order.site for order in orders}
    return max(
        (
            epsilon(
                [
                    Cost(noise=one.noise, rate=one.rate, steps=one.steps, delta=SMALL_DELTA)
                    for one in orders
                    if one.site == site
                ],
                SMALL_DELTA,
            )
            for site in sites
        ),
        default=0.0,
    )


def _compared(
    targets: Mapping[str, Target], cohort: Cohort, predicted: Mapping[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """(N, O) of one site."""
    columns = []
    for name, target in targets.items():
        label, value = cohort.labels[name].astype(np.float64), np.asarray(predicted[name], float)
        columns.append(_apart(target, label, value))
    return np.stack(columns, axis=1)


def _apart(
    target: Target, label: NDArray[np.float64], value: NDArray[np.float64]
) -> NDArray[np.float64]:
    if target.kind == "regression":
        found = (transformed(target, value) - transformed(target, label)) / target.scale
        return np.where(np.isnan(label), np.nan, np.clip(np.nan_to_num(found), -_FAR, _FAR))
    known = np.where(np.isnan(label), 0, label).astype(np.int64)
    right = (
        np.where(known == 1, value, 1 - value)
        if target.kind == "binary"
        else value[np.arange(len(known)), known]
    )
    right = np.clip(right, _SURE, 1 - _SURE)
    return np.where(np.isnan(label), np.nan, np.log(right) - np.log1p(-right))
