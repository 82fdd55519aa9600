"""The whole federation on one machine: Flower's ServerApp over a Grid that calls agents directly.

For demos, simulations, tests and leave-one-site-out studies, wherever one person may read all data.
ServerApp, strategy, orders, checks and agents are those of a real deployment; only the network is
missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, RecordDict
from numpy.typing import NDArray

from client.data.cohort import Cohort, Samples
from client.secure_sums.peers import Peers, identity_of, public_of
from client.service.agent import Agent
from client.service.agent_pool import open_agent
from client.site import Policy, Site, load_site
from common.errors import SettingError
from common.network.buildable import check_buildable
from common.study import Study, load_study
from deploy.local_grid import SERVER_NODE, LocalGrid
from deploy.local_workers import WorkersGrid, workers_for
from server.app import app
from server.federation.census import POOLED
from server.run import Run, open_run, read_run

_log = getLogger("callosum.local")


@dataclass(frozen=True, slots=True)
class Stacked:
    """The samples of several sites as if they were one array, read where they lie."""

    parts: tuple[Samples, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return (sum(len(part) for part in self.parts), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: NDArray[np.int64]) -> NDArray[Any]:
        ends = np.cumsum([len(part) for part in self.parts])
        found = np.empty((len(chosen), *self.shape[1:]), dtype=self.parts[0].dtype)
        which = np.searchsorted(ends, chosen, side="right")
        for number, part in enumerate(self.parts):
            here = which == number
            found[here] = part[chosen[here] - (ends[number] - len(part))]
        return found


def simulate(
    study_file: Path, sites: Path, out: Path, *, recast: bool = False, workers: int | None = 1
) -> Run:
    """Run a study over every site file below `sites`; the same call resumes.

    `workers` processes at most answer for the sites, None as many as can (`deploy.local_workers`).
    `recast` gives each site the role that the study has for it, whatever its own file says: where
    one person holds all data, and each site in turn is to be the one that judges.

    Raises
    ------
    CallosumError
        Whatever keeps the run from going on; nothing done so far is lost.
    """
    study = load_study(study_file)
    found = find_sites(study, sites, recast=recast)
    pin_threads(found)  # first: threads that torch has begun are no more in a forked process
    check_buildable(study, study_file)
    with open_run(out, study, study_file):
        pass  # refuse a foreign folder before hours of preparing
    agents = known_to_each_other(
        study,
        # what is masked once must be the same when it is asked for again
        [open_agent(study, site, keeps_training=study.secure_sums.on) for site in found],
    )
    if study.comparisons.pooled:
        agents += _pooled_agent(study, agents, out)
    run_phases(agents, out, workers)
    return read_run(out)


def known_to_each_other(study: Study, agents: Sequence[Agent]) -> list[Agent]:
    """The agents, each with the identities of all that train: here one person vouches for them."""
    if not study.secure_sums.on:
        return list(agents)
    own = {
        agent.site.name: identity_of(agent.site) for agent in agents if agent.site.role == "train"
    }
    known = {name: public_of(key) for name, key in own.items()}
    return [
        replace(agent, peers=Peers(own[agent.site.name], known))
        if agent.site.name in own
        else agent
        for agent in agents
    ]


def run_phases(agents: Sequence[Agent], folder: Path, workers: int | None = 1) -> None:
    """Drive an opened run folder's phases over `agents`, through Flower's ServerApp."""
    pin_threads([agent.site for agent in agents])
    most = workers_for(agents)
    number = most if workers is None else min(workers, most)
    with LocalGrid(agents) if number == 1 else WorkersGrid(agents, number) as grid:
        _drive(grid, folder)


def _drive(grid: LocalGrid, folder: Path) -> None:
    context = Context(
        run_id=1,
        node_id=SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config={
            "run": str(folder),
            "nodes": json.dumps(grid.nodes),
            "key": "",
            "books": "",
            "peers": "",
        },
    )
    app(grid, context)


def find_sites(study: Study, folder: Path, *, recast: bool = False) -> list[Site]:
    """The site files below `folder` that the study names, each with the role the study gives it.

    Where a file says another, that is a fault, unless roles are `recast`; no file is changed.

    Raises
    ------
    SettingError
        If two files claim one name, a named site has no file, or a role contradicts the study.
    """
    named = {
        **dict.fromkeys(study.sites.train, "train"),
        **dict.fromkeys(study.sites.heldout, "heldout"),
    }
    found: dict[str, Site] = {}
    files = [folder] if folder.is_file() else site_files(folder)
    for file in files:
        site = load_site(file)
        if site.name not in named:
            continue
        if site.name in found:
            raise SettingError(
                f"{file} and {found[site.name].file} both claim the name {site.name}; rename one"
            )
        if site.role != named[site.name] and not recast:
            raise SettingError(
                f'{site.name} is to be "{named[site.name]}" in the study, but its own file says '
                f'role = "{site.role}" ({file}); the site decides'
            )
        found[site.name] = site.model_copy(update={"role": named[site.name]})
    missing = sorted(named.keys() - found.keys())
    if missing:
        raise SettingError(
            f"no site file below {folder} has the name {', '.join(missing)}; "
            f"found: {', '.join(sorted(found)) or 'none'}"
        )
    return [found[name] for name in named]


def site_files(folder: Path) -> list[Path]:
    """Every site*.toml below; one data set that cannot be listed hides nothing beside it."""
    found = (
        Path(place) / name
        for place, _, names in os.walk(folder)  # `rglob` ends at a stale handle
        for name in names
        if fnmatch(name, "site*.toml")
    )
    return sorted(found)


def _pooled_agent(study: Study, agents: Sequence[Agent], out: Path) -> list[Agent]:
    """All training data in one place, as one more training site."""
    training = [
        agent for agent in agents if agent.site.role == "train" and len(agent.cohort.participants)
    ]
    if len(training) < 2:
        return []
    cohorts = [agent.cohort for agent in training]
    cohort = Cohort(
        samples=Stacked(tuple(cohort.samples for cohort in cohorts)),
        layout=study.layout,
        participants=tuple(p for cohort in cohorts for p in cohort.participants),
        scans=tuple(scan for cohort in cohorts for scan in cohort.scans),
        labels={
            name: np.concatenate([cohort.labels[name] for cohort in cohorts])
            for name in study.targets
        },
        measures=_stacked_measures(cohorts),
        findings=(),
        contents=tuple(content for cohort in cohorts for content in cohort.contents),
        secrets=tuple(secret for cohort in cohorts for secret in cohort.secrets),
    )
    site = training[0].site.model_copy(
        update={
            "name": POOLED,
            # whoever pools holds all rows anyway
            "policy": Policy(orders=("census", "settle", "train", "linear"), sums_of_few=True),
            "folder": str((out / ".pooled").resolve()),
        }
    )
    return [Agent(site, study, cohort, keeps_training=False)]


def _stacked_measures(cohorts: Sequence[Cohort]) -> NDArray[np.floating[Any]] | None:
    """Measures of all sites, if every site has the same ones."""
    parts = [cohort.measures for cohort in cohorts if cohort.measures is not None]
    alike = len(parts) == len(cohorts) and len({part.shape[1] for part in parts}) == 1
    return np.concatenate(parts) if alike else None


def pin_threads(sites: Sequence[Site]) -> None:
    """One thread count for the process: more threads than cores doubles the time of a step."""
    asked = {site.device.threads for site in sites} - {0}
    torch.set_num_threads(min(asked) if asked else os.cpu_count() or 1)
