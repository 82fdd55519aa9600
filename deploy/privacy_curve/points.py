"""A study at one epsilon after another: a federated run a point, where an earlier call stopped.

OUT/
  studies/STUDY/EPSILON/REPEAT.toml   the study with the noise that keeps every site within epsilon
  points/STUDY/EPSILON/REPEAT/        its run folder, which resumes by itself

The first point of a study has clipping and no noise; from its rounds it is known how many people
train at each site, and so how much noise the dearest of them needs. A study that is not private is
run as it is, and stands beside the others.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import tomli_w

from common.errors import CallosumError, SettingError
from common.network.buildable import check_buildable
from common.privacy.accounting import noise_for
from common.privacy.cost import Cost
from common.privacy.models import orders_of
from common.runtime.durable import write_atomically
from common.settings import read_toml
from common.study import Study, parse_study
from deploy.in_turn import problem_of, run_in_turn
from deploy.local import simulate
from deploy.privacy_curve.variants import variants
from server.federation.initial import start_table
from server.run import Run, read_run

EPSILONS: Final = (math.inf, 50.0, 10.0, 8.0, 4.0, 2.0, 1.0)
_LEAST: Final = 1e-3  # below it no noise leaves anything to measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One study at one epsilon, infinite where there is no noise; repeats differ in their seed."""

    study: str
    epsilon: float
    repeat: int

    @property
    def name(self) -> str:
        """What people are told."""
        return f"{self.study} at epsilon {self.epsilon:g}, repeat {self.repeat}"

    @property
    def place(self) -> Path:
        """Where it lies, below the folder of all studies or of all points."""
        return Path(self.study) / f"{self.epsilon:g}" / str(self.repeat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Studies by name, in the order given; every private one at each epsilon, so often."""

    files: Mapping[str, Path]
    tables: Mapping[str, Mapping[str, Any]]
    studies: Mapping[str, Study]
    epsilons: tuple[float, ...]
    repeats: int

    def points(self) -> list[Point]:
        """The noiseless first, which tells who trains; then from the weakest privacy on."""
        return [
            Point(study=name, epsilon=epsilon, repeat=repeat)
            for name, study in self.studies.items()
            for epsilon in (self.epsilons if study.privacy.is_private else self.epsilons[:1])
            for repeat in range(self.repeats)
        ]


def design(
    files: Sequence[Path], epsilons: Sequence[float], repeats: int, begin: Path | None = None
) -> Design:
    """Read the studies and check that each can be run at every epsilon.

    begin : a finished run or release; each private study is also run from all of its arrays

    Raises
    ------
    SettingError
        Naming the study, or the epsilon, and the fault.
    """
    wrong = [one for one in epsilons if math.isnan(one) or one < _LEAST]
    if wrong:
        raise SettingError(f"--epsilon is {wrong[0]:g}; {_LEAST:g} or more is needed, or inf")
    studies: dict[str, Study] = {}
    named: dict[str, Path] = {}
    tables: dict[str, Mapping[str, Any]] = {}
    for file, table in [one for given in files for one in _tables(given, begin)]:
        study = parse_study(table, file)
        if study.name in studies:
            raise SettingError(
                f'{named[study.name]} and {file} are both called "{study.name}"; rename one'
            )
        if not study.sites.heldout:
            raise SettingError(f"sites.heldout is empty: nobody judges {study.name} ({file})")
        if study.privacy.unit == "site":
            raise SettingError(
                f'privacy.unit is "site" in {study.name}; a curve is drawn of "participant": noise '
                f"for whole sites is shared among them (callosum study plan tells it) ({file})"
            )
        check_buildable(study, file)
        studies[study.name], named[study.name], tables[study.name] = study, file, table
    if not any(study.privacy.is_private for study in studies.values()):
        raise SettingError(
            f'privacy.unit is "none" in {", ".join(studies)}; a curve needs a study with '
            '"participant"'
        )
    ordered = tuple(sorted({math.inf, *epsilons}, reverse=True))
    return Design(
        files=named, tables=tables, studies=studies, epsilons=ordered, repeats=repeats
    )  # fmt: skip


def _tables(file: Path, begin: Path | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A study, or all that a file of settings makes of one; then what begins from `begin`."""
    whole = read_toml(file)
    found = list(variants(file)) if "settings" in whole else [(file, whole)]
    yield from found
    for of, table in found:
        if begin is not None and table.get("privacy", {}).get("unit") == "participant":
            yield of, _begun(table, begin)


def _begun(table: Mapping[str, Any], begin: Path) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        draft = Path(folder) / "study.toml"
        draft.write_text(tomli_w.dumps(table), encoding="utf-8")
        start = tomllib.loads(start_table(draft, begin, "all", ()))["start"]
        start["file"] = str((draft.resolve().parent / start["file"]).resolve())
    return {**table, "name": f"{table['name']}-begun", "start": start}


@lru_cache(maxsize=1024)
def _least_noise(epsilon: float, cost: Cost) -> float | None:
    """Kept: it is asked whenever a point is looked for, and sites of one size cost the same."""
    return noise_for(epsilon, cost, cost.delta)


@dataclass(frozen=True, slots=True)
class Points:
    """The points of one design in one folder."""

    design: Design
    places: Path
    out: Path

    def run(self, asked: Iterable[Point]) -> dict[str, str]:
        """Run what is not finished; names of the points that failed, and why."""
        return run_in_turn(
            "point", "the curve", asked, lambda one: problem_of(one.name, partial(self._run, one))
        )

    def finished(self, point: Point) -> Run | None:
        """A point's run, if it was finished by the study that the point is now."""
        folder = self.folder(point)
        try:
            is_same = (folder / "study.toml").read_text(encoding="utf-8") == self._text(point)
        except (OSError, CallosumError):
            return None
        return read_run(folder) if is_same and (folder / "results.csv").exists() else None

    def folder(self, point: Point) -> Path:
        """A point's run folder."""
        return self.out / "points" / point.place

    def study_file(self, point: Point) -> Path:
        """A point's study file."""
        return (self.out / "studies" / point.place).with_suffix(".toml")

    def noise(self, point: Point) -> float:
        """The least with which all orders of a run stay within epsilon at every site, in clips.

        Raises
        ------
        SettingError
            If no noise does, or the point without noise is not finished.
        """
        if math.isinf(point.epsilon):
            return 0.0
        return max(self._needed(point, cost) for cost in self._costs(point).values())

    def _needed(self, point: Point, cost: Cost) -> float:
        study = self.design.studies[point.study]
        whole = cost.model_copy(update={"steps": cost.steps * orders_of(study)})
        found = _least_noise(point.epsilon, whole)
        if found is None:
            raise SettingError(f"no noise keeps {point.study} within epsilon {point.epsilon:g}")
        return found

    def _costs(self, point: Point) -> dict[str, Cost]:
        """What a round cost each site, by its own words, without noise."""
        first = Point(study=point.study, epsilon=math.inf, repeat=0)
        run = self.finished(first)
        if run is None:
            raise SettingError(f"{first.name} must be finished first: it tells who trains")
        found = {
            site: Cost.model_validate(line["cost"])
            for record in run.federated.records()
            for site, line in record["answered"].items()
            if "cost" in line
        }
        if not found:
            raise SettingError(f"no site trained in {first.name}")
        return found

    def _run(self, point: Point) -> None:
        if self.finished(point) is None:
            write_atomically(self.study_file(point), self._text(point).encode())
            simulate(self.study_file(point), self.places, self.folder(point), workers=None)

    def _text(self, point: Point) -> str:
        """The study file of a point, as it is now."""
        file, table = self.design.files[point.study], self.design.tables[point.study]
        study = self.design.studies[point.study]
        changed: dict[str, Any] = {"seed": study.seed + point.repeat}
        if study.privacy.is_private:
            capped = 0.0 if math.isinf(point.epsilon) else point.epsilon
            hidden = {"noise": self.noise(point), "epsilon": capped}
            changed["privacy"] = {**table["privacy"], **hidden}
        if "file" in table.get("start", {}):  # relative to the study file, which stands elsewhere
            origin = (file.resolve().parent / table["start"]["file"]).resolve()
            changed["start"] = {**table["start"], "file": str(origin)}
        return tomli_w.dumps({**table, **changed})
