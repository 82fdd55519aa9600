"""What lies beside a functional run: events, confounds, brain mask and JSON file.

BIDS lets a file hold for every run below its folder whose name has all of its entities. The nearest
folder decides, and in it the name that has most of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.data.functional.repetition_time import read_side_file
from client.data.readers.bids import VERSIONS, ScanFile, entities, stem_of
from client.data.readers.links import stamp_of
from common.errors import reason
from common.printable import name_as_text

_EVENTS: Final = "_events.tsv"
_JSON: Final = "_bold.json"
_CONFOUNDS: Final = ("_desc-confounds_timeseries.tsv", "_desc-confounds_regressors.tsv")
_MASKS: Final = ("_desc-brain_mask.nii.gz", "_desc-brain_mask.nii")


@dataclass(slots=True, kw_only=True)
class SideFiles:
    """Of one run: paths, "" where there is none, and what was odd.

    said_s: the repetition time of the JSON file, None without. stamp: changes with any of them.
    """

    events: str = ""
    confounds: str = ""
    mask: str = ""
    said_s: float | None = None
    stamp: str = ""
    notes: list[str] = field(default_factory=list)
    problem: str = ""  # why the run cannot be used


class Folders:
    """Finds the files beside runs; every folder is listed once.

    `home` is the data set, `homes` are the folders that links may lead to; `mask` stands for the
    masks of all runs.
    """

    def __init__(self, home: Path, homes: tuple[Path, ...], mask: Path | None) -> None:
        self._home, self._homes, self._mask = home, homes, mask
        self._listed: dict[Path, list[str]] = {}
        self._refused: dict[Path, str] = {}
        self._said: dict[Path, tuple[float | None, str]] = {}

    def beside(self, run: ScanFile, *, with_events: bool = True) -> SideFiles:
        """All that is there for a run; one without events is none, unless nobody asks for them."""
        found, stamps = SideFiles(), [run.stamp]
        own = _folder_names(run)
        places = [
            run.path.parent,
            *(self._home.joinpath(*own[:n]) for n in range(len(own), -1, -1)),
        ]
        places = list(dict.fromkeys(places))
        plain = {key: value for key, value in run.entities.items() if key not in VERSIONS}
        if with_events:
            found.events = self._one(places, (_EVENTS,), plain, found, stamps)
        near = places[:2]
        found.confounds = self._one(near, _CONFOUNDS, plain, found, stamps)
        found.mask = self._mask_of(run, found, stamps)
        self._read_side_file(places, run.entities, found, stamps)
        found.stamp = hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:32]
        refused = [place for place in places if place in self._refused]
        if refused:
            found.problem = f"what lies beside it cannot be listed: {self._refused[refused[0]]}"
        if with_events and not found.events and not found.problem:
            found.problem = "has no events table (*_events.tsv with its name, or above it)"
        return found

    def _mask_of(self, run: ScanFile, found: SideFiles, stamps: list[str]) -> str:
        if self._mask is not None:
            return self._kept(self._mask, found, stamps)
        wanted = {key: value for key, value in run.entities.items() if key != "desc"}
        names = [
            name
            for name in self._names(run.path.parent)
            if name.endswith(_MASKS) and _entities_of(name) == wanted
        ]
        return self._kept(run.path.parent / names[0], found, stamps) if names else ""

    def _one(
        self,
        places: Sequence[Path],
        endings: tuple[str, ...],
        wanted: Mapping[str, str],
        found: SideFiles,
        stamps: list[str],
    ) -> str:
        """The file with one of `endings` that holds for a run; two that do are a problem."""
        for place in places:
            names = self._fitting(place, endings, wanted)
            if len(names) > 1:
                found.problem = f"has several files {' and '.join(names[:2])}; one is needed"
                return ""
            if names:
                return self._kept(place / names[0], found, stamps)
        return ""

    def _fitting(
        self, place: Path, endings: tuple[str, ...], wanted: Mapping[str, str]
    ) -> list[str]:
        """Names in a folder that have only entities of the run, and as many as any."""
        fitting: dict[str, int] = {}
        for name in self._names(place):
            if name.endswith(endings):
                own = _entities_of(name)
                if own.items() <= wanted.items():
                    fitting[name] = len(own)
        most = max(fitting.values(), default=0)
        return [name for name, count in fitting.items() if count == most]

    def _read_side_file(
        self,
        places: Sequence[Path],
        wanted: Mapping[str, str],
        found: SideFiles,
        stamps: list[str],
    ) -> None:
        for place in places:
            for name in self._fitting(place, (_JSON,), wanted):
                path = place / name
                if path not in self._said:
                    _, problem = stamp_of(path, self._homes)
                    self._said[path] = (None, f"{name} {problem}") if problem else (
                        read_side_file(path)
                    )  # fmt: skip
                said_s, problem = self._said[path]
                if problem:
                    found.notes.append(problem)
                if said_s is not None:
                    found.said_s = said_s
                    stamps.append(f"{said_s!r}")
                    return

    def _kept(self, path: Path, found: SideFiles, stamps: list[str]) -> str:
        """A file that may be read, as text; else nothing, and why the run cannot be used."""
        stamp, problem = stamp_of(path, self._homes)
        if problem:
            found.problem = f"{name_as_text(path.name)} {problem}"
            return ""
        stamps.append(f"{path.name} {stamp}")
        return str(path)

    def _names(self, folder: Path) -> list[str]:
        if folder not in self._listed:
            self._listed[folder] = []
            try:
                self._listed[folder] = sorted(entry.name for entry in folder.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                self._refused[folder] = reason(error)
        return self._listed[folder]


def _folder_names(run: ScanFile) -> list[str]:
    """From the data set to where its raw runs lie."""
    return [run.participant, *([run.session] if run.session else []), "func"]


def _entities_of(name: str) -> dict[str, str]:
    found = entities(name_as_text(stem_of(name)[0]))
    found.pop("desc", None)
    return found
