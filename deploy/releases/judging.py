"""Judges a finished model at sites that took no part, beside what others have found of it.

RUN/groups/GROUP/, or the folder that is given:
  evaluation.json        which group of held-out sites it is, and whose model they judge
  study.json             of the model
  census/, overlap/      what the judges hold, and tokens of their scans
  evaluation/MODEL/      their answers
  results.csv            their rows, and those over all of them
  certificate.json, .sig what was judged, on whom, by which code, and what it had seen

An earlier group's figures never change: a judge that comes later belongs to a group of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final

from client.service.agent_pool import open_agent
from client.site import Site, load_site
from common.errors import SENTENCES, DataError, FolderError, LineageError, SettingError
from common.sections import RESERVED
from common.study import check_name, with_plugins
from deploy.local import pin_threads, site_files
from deploy.local_grid import LocalGrid
from deploy.releases.certificate import STUDY, certify
from deploy.releases.documents import coordinator_key, digest_of_file
from server.checkpoints import about_checkpoint, seen_by
from server.federation.exchange import Exchange
from server.federation.phases import Phases
from server.overlap import held_before
from server.results import EVALUATION, GROUPS, all_of, write_results
from server.run import Run, alone, open_run, read_run
from server.run_files import read_sealed, write_json, write_sealed

_LATER: Final = "later"


def judge(
    place: Path,
    sites: Path,
    out: Path | None = None,
    group: str | None = None,
    key: Path | None = None,
) -> Path:
    """Let every site file below `sites` judge the model of a run or release; where answers lie.

    Raises
    ------
    LineageError
        If a site's role, name or scans say that it contributed; then nobody judges.
    FolderError
        If the run is not finished, or the group has judged already and is another one.
    """
    run = read_run(place)
    if not run.federated.final.exists() or not (place / "results.csv").exists():
        raise FolderError(f"{place} is not finished; simulate it first")
    found = [load_site(file) for file in ([sites] if sites.is_file() else site_files(sites))]
    if not found:
        raise SettingError(f"no site file is below {sites}")
    for site in found:
        _check(run, site, [one.name for one in found])
    name = (found[0].name if len(found) == 1 else _LATER) if group is None else group
    _check_group(run, name, [site.name for site in found])
    folder = out or _inside(run, name)
    with _held(run, folder, inside=out is None):
        _open(run, folder, name, [site.name for site in found], beside=out is not None)
        _asked(run, folder, found)
        write_results(replace(run, folder=folder))
        certify(run, folder, coordinator_key(place, key))
        if out is None:
            write_results(run)
    return folder


def _check(run: Run, site: Site, names: Sequence[str]) -> None:
    if site.role != "heldout":
        raise LineageError(f'{site.file} says role = "{site.role}"; only a held-out site can judge')
    if site.name in RESERVED:
        raise SettingError(f'no site may be called "{site.name}"; results use that name')
    if names.count(site.name) > 1:
        raise SettingError(f"several site files claim the name {site.name}; rename all but one")
    if site.name in run.study.sites.train:
        raise LineageError(f"{site.name} is a training site of {run.study.name}; it cannot judge")
    if site.name in run.study.sites.chosen_on:
        raise LineageError(f"{run.study.name} was chosen by figures of {site.name} (chosen_on)")


def _check_group(run: Run, name: str, sites: Sequence[str]) -> None:
    check_name(name)
    if name == "heldout":
        raise SettingError('group "heldout" is the study\'s own; choose another --group')
    taken = {*sites, *run.study.sites.train, *run.study.sites.heldout}
    if all_of(name) in taken:
        raise SettingError(f"{all_of(name)} is a site; choose another --group")


def _inside(run: Run, name: str) -> Path:
    if not (run.folder / "evaluation").exists() and not (run.folder / "rounds").exists():
        raise SettingError(f"{run.folder} is a release, to which nothing is added; give --out")
    return run.folder / GROUPS / name


def _held(run: Run, folder: Path, *, inside: bool) -> AbstractContextManager[object]:
    """Nobody else works in the folder that is written to."""
    if inside:
        return open_run(run.folder, run.study)
    foreign = folder.is_file() or (
        folder.exists()
        and not (folder / EVALUATION).exists()
        and any(not path.name.startswith(".") for path in folder.iterdir())
    )
    if foreign:
        raise FolderError(f"{folder} holds something else than an evaluation; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return alone(folder)


def _open(run: Run, folder: Path, name: str, sites: Sequence[str], *, beside: bool) -> None:
    """Say what the folder is, or find that it is just that."""
    told = {
        "group": name,
        "sites": sorted(sites),
        "study": run.study.digest,
        "model": digest_of_file(run.federated.final),
        "of": os.path.relpath(run.folder.resolve(), folder.resolve()),
    }
    path = folder / EVALUATION
    if path.exists():
        before = read_sealed(path)
        if {**before, "of": ""} != {**told, "of": ""}:
            raise FolderError(
                f"{folder} is the evaluation of {', '.join(before['sites'])} as group "
                f"{before['group']}, or of another model; its figures stay as they are. Give "
                f"another {'--out' if beside else '--group'}"
            )
    elif not beside and (judged := _judged(run) & set(sites)):
        raise FolderError(f"{', '.join(sorted(judged))} judged in {run.folder} before; give --out")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STUDY, run.study.model_dump(mode="json"))
        write_sealed(path, told)


def _judged(run: Run) -> set[str]:
    """Who has judged the run's own model, in whichever group."""
    places = (
        "evaluation/federated/*.safetensors",
        f"{GROUPS}/*/evaluation/federated/*.safetensors",
    )
    return {path.stem for place in places for path in run.folder.glob(place)}


def _asked(run: Run, folder: Path, sites: Sequence[Site]) -> None:
    study, names = run.study, [site.name for site in sites]
    agents = [open_agent(with_plugins(study), site) for site in sites]
    pin_threads([agent.site for agent in agents])
    grid = LocalGrid(agents)
    phases = Phases(run, Exchange(grid, grid.nodes, study), folder)
    outcome = phases.census_of(names)
    for name in names:
        if name not in outcome.reports:
            code = outcome.refused[name]
            raise DataError(f"{name} cannot judge: {code}: {SENTENCES[code]}")
    lineage = about_checkpoint(run.federated.final, study).lineage
    phases.overlaps(outcome.reports, held_before(lineage, seen_by(run.federated.final)))
    phases.judge(names, outcome.reports)
