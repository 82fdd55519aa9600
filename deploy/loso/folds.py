"""Each site held out in turn, by each study: a federated run a fold, where an earlier call stopped.

OUT/
  studies/SITE/STUDY.toml   the study with that site held out, and the [start] that the fold gives
  folds/SITE/STUDY/         its run folder, which resumes by itself

A site trains in every fold but its own. Its own file says one role; here each fold gives it one, in
memory alone, which only one who holds all data may do: folds are run by the local engine and by no
other. No file of a site is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import tomli_w

from common.errors import CallosumError, RunBusyError, SettingError
from common.network.buildable import check_buildable
from common.runtime.durable import write_atomically
from common.settings import read_toml
from common.study import Study, parse_study
from deploy.in_turn import problem_of, run_in_turn
from deploy.local import simulate
from server.federation.initial import start_table
from server.run import Run, is_held, read_run

_FEWEST: Final = 3  # sites; with two, one trains alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """A study begins from what an earlier one led to in the same fold."""

    study: str
    earlier: str
    take: Literal["backbone", "all"] = "backbone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One study with one site held out."""

    study: str
    site: str

    @property
    def name(self) -> str:
        """What people are told."""
        return f"{self.study} without {self.site}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Studies by name, in the order given, and what begins from what."""

    files: Mapping[str, Path]
    studies: Mapping[str, Study]
    begins: Mapping[str, Beginning]

    def sites(self, name: str) -> tuple[str, ...]:
        """Every site that a study names, those that train first."""
        sites = self.studies[name].sites
        return (*sites.train, *sites.heldout)

    def folds(self) -> list[Fold]:
        """Site by site, so that an early end has pairs; what others begin from goes first."""
        every = dict.fromkeys(site for name in self.studies for site in self.sites(name))
        return [
            Fold(study=name, site=site)
            for site in every
            for name in self.studies
            if site in self.sites(name)
        ]


def design(files: Sequence[Path], begins: Sequence[str]) -> Design:
    """Read the studies and check that each could be run in every fold.

    Parameters
    ----------
    begins : STUDY=EARLIER, or STUDY=EARLIER:all where heads and tokens are taken over, too

    Raises
    ------
    SettingError
        Naming the study and the fault.
    """
    studies: dict[str, Study] = {}
    named: dict[str, Path] = {}
    for file in files:
        study = parse_study(read_toml(file), file)
        if study.name in studies:
            raise SettingError(
                f'{named[study.name]} and {file} are both called "{study.name}"; rename one'
            )
        check_buildable(study, file)
        studies[study.name], named[study.name] = study, file
    found = Design(files=named, studies=studies, begins=_beginnings(begins, studies))
    for name in studies:
        _check(found, name)
    return found


def _check(found: Design, name: str) -> None:
    sites, file = found.sites(name), found.files[name]
    if len(sites) < _FEWEST:
        raise SettingError(
            f"{name} has {len(sites)} sites; {_FEWEST} are needed, so that two train while one "
            f"judges ({file})"
        )
    begin = found.begins.get(name)
    lacking = set(sites) - set(found.sites(begin.earlier)) if begin else set()
    if begin and lacking:
        raise SettingError(
            f"{name} begins from {begin.earlier}, which has no fold without "
            f"{', '.join(sorted(lacking))}; both studies need the same sites"
        )


def _beginnings(given: Sequence[str], studies: Mapping[str, Study]) -> dict[str, Beginning]:
    places = {name: place for place, name in enumerate(studies)}
    found: dict[str, Beginning] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        earlier, colon, take = rest.partition(":")
        whole = f"--begin is {text}"
        if not equals or take not in (("all", "backbone") if colon else ("",)):
            raise SettingError(f"{whole}; STUDY=EARLIER is needed, or STUDY=EARLIER:all")
        for study in (name, earlier):
            if study not in studies:
                raise SettingError(f"{whole}; there are the studies {', '.join(studies)}")
        if places[earlier] >= places[name]:
            raise SettingError(f"{whole}; {earlier} must be named before {name}")
        if name in found or studies[name].start is not None:
            raise SettingError(f"{whole}; {name} begins from something else already")
        found[name] = Beginning(
            study=name, earlier=earlier, take="all" if take == "all" else "backbone"
        )
    return found


@dataclass(frozen=True, slots=True)
class Folds:
    """The folds of one design in one folder."""

    design: Design
    places: Path
    out: Path

    def run(self, asked: Iterable[Fold]) -> dict[str, str]:
        """Run what is not finished; names of the folds that failed, and why."""
        return run_in_turn(
            "fold", "all sites", asked, lambda fold: problem_of(fold.name, partial(self._run, fold))
        )

    def finished(self, fold: Fold) -> Run | None:
        """A fold's run, if it was finished by the study that the fold is now."""
        folder = self.folder(fold)
        try:
            is_same = (folder / "study.toml").read_text(encoding="utf-8") == self._text(fold)
        except (OSError, CallosumError):
            return None
        return read_run(folder) if is_same and (folder / "results.csv").exists() else None

    def folder(self, fold: Fold) -> Path:
        """A fold's run folder."""
        return self.out / "folds" / fold.site / fold.study

    def study_file(self, fold: Fold) -> Path:
        """A fold's study file."""
        return self.out / "studies" / fold.site / f"{fold.study}.toml"

    def _run(self, fold: Fold) -> None:
        if self.finished(fold) is None:
            write_atomically(self.study_file(fold), self._text(fold).encode())
            simulate(
                self.study_file(fold), self.places, self.folder(fold), recast=True, workers=None
            )

    def _text(self, fold: Fold) -> str:
        """The study file of a fold, as it is now."""
        plain = tomli_w.dumps(self._tables(fold))
        begin = self.design.begins.get(fold.study)
        return plain if begin is None else f"{plain}\n{self._start(fold, begin, plain)}"

    def _tables(self, fold: Fold) -> dict[str, Any]:
        file = self.design.files[fold.study]
        table = read_toml(file)
        trains = [site for site in self.design.sites(fold.study) if site != fold.site]
        sites = {**table["sites"], "train": trains, "heldout": [fold.site]}
        if "quorum" in sites:
            sites["quorum"] = min(sites["quorum"], len(trains))
        start = dict(table.get("start", {}))
        if start.get("file"):  # relative to the study file, which stands elsewhere
            origin = (file.resolve().parent / start["file"]).resolve()
            start["file"] = os.path.relpath(origin, self.study_file(fold).resolve().parent)
        return {**table, "sites": sites, **({"start": start} if start else {})}

    def _start(self, fold: Fold, begin: Beginning, plain: str) -> str:
        earlier = Fold(study=begin.earlier, site=fold.site)
        final = self.folder(earlier) / "checkpoints" / "final.safetensors"
        if not final.exists() or self.finished(earlier) is None:
            if is_held(self.folder(earlier)):
                raise RunBusyError(f"another process is working in {earlier.name}")
            raise SettingError(f"it begins from {earlier.name}, which is not finished")
        file = self.study_file(fold)
        draft = file.with_name(f".{file.name}.{os.getpid()}")  # paths in it start from its folder
        write_atomically(draft, plain.encode())
        try:
            return start_table(draft, final, begin.take, ())
        finally:
            draft.unlink()
