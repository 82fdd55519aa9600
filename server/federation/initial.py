"""What a model starts from; the coordinator's only file that builds a network, or meets torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
from numpy.typing import NDArray

from common.arrays import Arrays
from common.errors import SettingError
from common.explain import explain
from common.network.buildable import check_buildable
from common.network.building import arrays_of, build, load_arrays, plan_of
from common.network.merging import merged
from common.network.plan import Plan, Rule
from common.network.settling import (
    constants,
    passes,
    refuse_unsound,
    sent_to_settle,
    settle,
    settling,
    sums_plan,
)
from common.network.size import outline
from common.network.starting import names_taken, taken
from common.network.tuning import build_for, task_of, tune, tuned_arrays
from common.protocol.orders import digest_of
from common.protocol.wire import Stored
from common.seams import SHARED
from common.sections import FineTuning, Start
from common.seeding import seed_of
from common.settings import checked, read_toml
from common.study import Study, load_study, parse_study, with_plugins
from server.beginning import told_of
from server.checkpoints import about_checkpoint, model_file, seen_by
from server.federation.report_validation import Sound

# (number of the pass, constants so far, what a site's sums must be) -> sums of each site
Ask = Callable[[int, Arrays, Plan, Sound], Sequence[Mapping[str, NDArray[Any]]]]


def initial(study: Study, begin: Mapping[str, NDArray[Any]], ask: Ask) -> tuple[Arrays, Plan]:
    """The first arrays of a model, and their rules.

    Drawn from the study's seed, then replaced by `begin`, the arrays that the study takes from an
    earlier checkpoint; constants that these do not bring are settled by asking the sites.
    """
    whole = with_plugins(study)
    network = build(whole, seed=seed_of(study.seed, "initial"))
    plan = plan_of(network, study.aggregation.normalisation)
    load_arrays(network, begin)
    modules = {
        place: module
        for place, module in settling(network).items()
        if not any(name.rpartition(".")[0] == place for name in begin)
    }
    number = 0
    while number < passes(modules):  # fewer may be left than there seemed to be
        now = arrays_of(network)
        so_far = {name: now[name] for name in sorted(sent_to_settle(network, now))}
        sound = partial(refuse_unsound, modules, number=number)
        found = ask(number, so_far, sums_plan(whole, modules, number), sound)
        settle(modules, found, number)
        number += 1
    return arrays_of(network), plan


def before_training(
    study: Study, begin: Mapping[str, NDArray[Any]], final: Mapping[str, NDArray[Any]]
) -> Arrays:
    """The arrays that a finished model began from, with the constants that were settled for it."""
    network = build(with_plugins(study), seed=seed_of(study.seed, "initial"))
    load_arrays(network, {**{name: final[name] for name in constants(network)}, **begin})
    return arrays_of(network)


def terms_of(study: Study) -> tuple[str, ...]:
    """Terms of the loss of a study's network, by name."""
    return tuple(outline(with_plugins(study)).weights)


def start_table(file: Path, checkpoint: Path, take: str, leave: tuple[str, ...]) -> str:
    """The `[start]` table of the study in `file`, from a checkpoint, finished run or release.

    Raises
    ------
    SettingError
        If what the study's network would take and what the checkpoint holds do not match, array by
        array; or a held-out site of the study contributed.
    """
    checkpoint = model_file(checkpoint)
    table = read_toml(file)
    table.pop("start", None)
    study = parse_study(table, file)
    about = about_checkpoint(checkpoint)
    theirs = merged(Stored(checkpoint, "model/"))
    start = checked(
        Start,
        {
            "study": about.name,
            "file": os.path.relpath(checkpoint.resolve(), file.resolve().parent),
            "take": take,
            "leave": leave,
            "arrays": "0" * 64,
            **told_of(about.lineage, seen_by(checkpoint)),
        },
        file=checkpoint,
        at="start",
    )
    plan = plan_of(outline(study), study.aggregation.normalisation)
    _match(start, plan, theirs, checkpoint)
    digest = digest_of(taken(start, theirs))
    whole = {"file": start.file, **start.model_dump(mode="json"), "arrays": digest}
    parse_study({**table, "start": whole}, file)  # a held-out site in the lineage shows here
    return tomli_w.dumps({"start": whole})


def _match(start: Start, plan: Plan, theirs: Mapping[str, NDArray[Any]], checkpoint: Path) -> None:
    """Nothing is taken, or left, in silence."""
    wanted, held = set(names_taken(start, plan)), set(names_taken(start, theirs))
    if not wanted & held:
        raise SettingError(
            f"{checkpoint} and the study's network have no array in common; theirs: "
            f"{', '.join(sorted(theirs)[:3])}, the study's: {', '.join(sorted(plan)[:3])}"
        )
    unlike = {name for name in wanted & held if theirs[name].shape != plan[name].shape}
    for names, problem in (
        (wanted - held, "are not in the checkpoint"),
        (held - wanted, "of the checkpoint have no place in the study's network"),
        (unlike, "have another shape there"),
    ):
        if names:
            first = ", ".join(sorted(names)[:4])
            raise SettingError(
                f"{len(names)} arrays {problem}: {first}; --leave BEGINNING draws such arrays anew"
            )


def tuned_plan(study: Study, settings: FineTuning, method: str) -> Plan:
    """Names and shapes of what a site sends of a network that it has tuned."""
    whole = with_plugins(study)
    task = task_of(whole, settings)
    network = build_for(whole, task, seed=0)
    tune(network, method, task, seed=0)
    rules = plan_of(network, study.aggregation.normalisation)
    return {
        name: Rule(
            shape=rules[name].shape, dtype=rules[name].dtype, group=SHARED,
            role=rules[name].role, kept=False,
        )
        for name in tuned_arrays(network)
    }  # fmt: skip


def map_plan(study: Study, task: FineTuning) -> Plan:
    """The one array of an explanation: a map of a sample's shape, or one for each class."""
    shape = with_plugins(study).shape
    if task.maps == "relevance":
        shape = (study.targets[task.target].outputs, *shape)
    rule = Rule(shape=shape, dtype="float32", group=SHARED, role="statistic", kept=False)
    return {"map": rule}


def explained(file: Path) -> str:
    """A study file in words, after everything that can be checked of it has been."""
    study = load_study(file)
    check_buildable(study, file)
    return explain(study)
