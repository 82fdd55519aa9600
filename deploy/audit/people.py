"""The people that an auditor holds: sites as the local engine takes them, or made ones.

Whoever attacks needs people like those who were trained on, and labels of theirs. What they are
called stays here: an audit knows them by number.

Letters in shapes: P people.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import tomli_w
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.data.loading import person_codes
from client.service.agent_pool import open_agent
from client.site import Policy, Site, load_site
from common.errors import DataError, SettingError
from common.runtime.durable import write_atomically
from common.sections import Target
from common.study import Study
from common.target_transform import restored
from deploy.hospitals.connectomes import write_connectomes
from deploy.hospitals.dataset import write_hospitals
from deploy.hospitals.sources import KINDS, write_sources
from deploy.hospitals.task_fmri import write_task_fmri
from deploy.local import site_files

FEWEST: Final = 40  # people; of fewer no rate of false alarms of 1 in 10 is worth a number
MADE: Final = ("audit-a", "audit-b")  # synthetic hospitals
_NOISE: Final = 0.5  # of a made label, in deviations


@dataclass(frozen=True)
class People:
    """P people of some sites; `made` if they are nobody."""

    sites: tuple[Site, ...]
    cohorts: tuple[Cohort, ...]
    made: bool

    @cached_property
    def numbers(self) -> tuple[NDArray[np.int64], ...]:
        """Of each site, (N,) the number of each sample's person, from 0 to P over all sites."""
        found, first = [], 0
        for cohort in self.cohorts:
            codes = person_codes(cohort.participants)
            found.append(codes + first)
            first += int(codes.max()) + 1 if len(codes) else 0
        return tuple(found)

    @property
    def number(self) -> int:
        """P."""
        return 1 + max((int(one.max()) for one in self.numbers if len(one)), default=-1)

    def where(self, chosen: NDArray[np.bool_]) -> list[Cohort]:
        """Each site's cohort with the people (P,) that are chosen, and nobody else."""
        return [
            cohort.subset(np.flatnonzero(chosen[numbers]))
            for cohort, numbers in zip(self.cohorts, self.numbers, strict=True)
        ]

    def with_false_labels(self, study: Study, whose: NDArray[np.bool_]) -> People:
        """The same people, where these (P,) have the labels that suit them least."""
        cohorts = []
        for cohort, numbers in zip(self.cohorts, self.numbers, strict=True):
            labels = {
                name: np.where(whose[numbers], _false(study.targets[name], values), values).astype(
                    np.float32
                )
                for name, values in cohort.labels.items()
            }
            cohorts.append(replace(cohort, labels=labels))
        return replace(self, cohorts=tuple(cohorts))

    def by_person(self, by_sample: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """(P, ...) means over everyone's samples, (N, ...) by site; NaN where nothing is known."""
        values, whose = np.concatenate(by_sample), np.concatenate(self.numbers)
        known = ~np.isnan(values)
        sums = np.zeros((self.number, *values.shape[1:]))
        counts = np.zeros_like(sums)
        np.add.at(sums, whose, np.where(known, values, 0.0))
        np.add.at(counts, whose, known.astype(np.float64))
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def people_of(study: Study, places: Path | None, folder: Path, number: int, seed: int) -> People:
    """The people of every site file below `places`; without any, made ones in `folder`.

    Parameters
    ----------
    number : how many in each of two made hospitals

    Raises
    ------
    SettingError
        If there is no site file, two claim one name, or nobody can be made for the study's kind.
    DataError
        If they are too few.
    """
    files = _made(study, folder, number, seed) if places is None else _given(places)
    sites = [_opened(load_site(file)) for file in files]
    names = [site.name for site in sites]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingError(f"several site files claim the name {', '.join(twice)}; rename one")
    cohorts = [
        _labelled(study, open_agent(study, site, keeps_training=False).cohort) for site in sites
    ]
    held = [pair for pair in zip(sites, cohorts, strict=True) if len(pair[1])]
    found = People(
        tuple(site for site, _ in held), tuple(cohort for _, cohort in held), places is None
    )
    if found.number < FEWEST:
        raise DataError(
            f"{found.number} people with labels are there; {FEWEST} are needed to tell members "
            f"from others ({places or folder})"
        )
    return found


def _given(places: Path) -> list[Path]:
    files = [places] if places.is_file() else site_files(places)
    if not files:
        raise SettingError(f"no site file is below {places}")
    return files


def _opened(site: Site) -> Site:
    """The site as one of the auditor's own: all of its people may be learnt from, by him."""
    policy = Policy(
        orders=("census", "overlap", "settle", "train"),
        minimum_cohort=1, minimum_support=1, sums_of_few=True,
        largest_update_norm=0.0, largest_drift=0.0, most_exposures=0,
    )  # fmt: skip
    return site.model_copy(update={"policy": policy, "role": "train"})


def _labelled(study: Study, cohort: Cohort) -> Cohort:
    """Samples that an objective of labels can learn from; of any other, all."""
    if not study.learns_from_labels or not len(cohort):
        return cohort
    known = [~np.isnan(cohort.labels[name]) for name in study.pretraining_targets]
    return cohort.subset(np.flatnonzero(np.any(known, axis=0)))


def _false(target: Target, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Labels that are as wrong as they can be: other classes, numbers at the other end."""
    if target.kind != "regression":
        return (values + 1) % target.outputs if target.kind == "categorical" else 1 - values
    known = values[~np.isnan(values)]
    if not len(known):
        return values
    far = np.where(values > np.median(known), known.min(), known.max())
    return np.where(np.isnan(values), values, far).astype(np.float32)


def _made(study: Study, folder: Path, number: int, seed: int) -> list[Path]:
    """Site files of two synthetic hospitals of the study's kind; those that are there stay."""
    kind = study.kind_name
    given: dict[str, Any] = {"names": MADE, "heldout": (), "seed": seed}
    spacing: dict[str, Any] = {
        "spacing_mm": max(1.0, float(getattr(study.data, "spacing_mm", 8.0)))
    }
    if kind == "t1w":
        return write_hospitals(folder, participants=number, threads=1, **spacing, **given)
    if kind == "bold":
        return write_task_fmri(folder, participants=number, **spacing, **given)
    if kind == "connectome":
        return write_connectomes(folder, participants=number, **given)
    if kind in KINDS:
        return write_sources(folder, kind=kind, number=number, **given)
    if kind == "features":
        return [_table(study, folder / name, name, number, seed + n) for n, name in enumerate(MADE)]
    raise SettingError(
        f"nobody can be made for data.kind {kind}; give the folder of some sites by --sites"
    )


def _table(study: Study, folder: Path, name: str, number: int, seed: int) -> Path:
    """A site of one table: positive columns, and labels that are linear in their logarithms."""
    random, slopes = np.random.default_rng((seed, 1)), np.random.default_rng(0)
    columns: tuple[str, ...] = study.data.needed  # type: ignore[attr-defined]
    z = random.normal(size=(number, len(columns)))
    labels = {}
    for target, about in study.targets.items():
        told = z @ slopes.normal(size=(len(columns), about.outputs)) / np.sqrt(len(columns))
        labels[target] = _label(about, told + random.normal(scale=_NOISE, size=told.shape))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["participant_id", *columns, *(f"target {target}" for target in labels)])
    rows = np.exp(0.2 * z)
    for n in range(number):
        told_of_her = [values[n] for values in labels.values()]
        table.writerow([f"{name}-{n:05d}", *(f"{x:.6f}" for x in rows[n]), *told_of_her])
    write_atomically(folder / "table.csv", text.getvalue().encode())
    site = {
        "name": name, "role": "train", "secret": "nobody to protect",
        "data": {"kind": "features", "table": "table.csv"},
        "targets": {target: {"column": f"target {target}"} for target in labels},
        "device": {"kind": "cpu", "threads": 1},
    }  # fmt: skip
    write_atomically(folder / "site.toml", tomli_w.dumps(site).encode())
    return folder / "site.toml"


def _label(target: Target, told: NDArray[np.float64]) -> list[str]:
    """What a table holds of (N, outputs) numbers of deviation 1."""
    if target.kind == "binary":
        return [target.classes[int(one > 0)] for one in told[:, 0]]
    if target.kind == "categorical":
        return [target.classes[int(one)] for one in told.argmax(1)]
    wanted = restored(target, _centred(target, told[:, 0]))
    return [f"{value:.4f}" for value in np.clip(wanted, target.low, target.high)]


def _centred(target: Target, told: NDArray[np.float64]) -> NDArray[np.float64]:
    middle = np.log(target.centre) if target.transform == "log" else target.centre
    return middle + target.scale * told
