"""Each cell of a protocol as a study over synthetic hospitals, run where an earlier call stopped.

OUT/
  hospitals/GROUP/     site files, and the scans of those that have any
  studies/CELL.toml    the cell's study, with the [start] of its pretraining cell
  cells/CELL/          its run folder, which resumes by itself
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import tomli_w

from common.errors import CallosumError, RunBusyError, SettingError
from common.kinds.synthetic_t1w import SyntheticT1w
from common.kinds.synthetic_video import SyntheticVideo
from common.runtime.durable import write_atomically
from common.runtime.locks import lock
from common.runtime.progress import track
from common.sections import Target
from common.study import Study, parse_study
from deploy.hospitals.dataset import write_hospitals
from deploy.hospitals.sources import write_sources
from deploy.in_turn import problem_of, run_in_turn
from deploy.local import simulate
from deploy.protocols.protocol import Cell, Protocol, TaskName, begins_from
from server.federation.initial import start_table
from server.run import Run, is_held, read_run

_DIAGNOSIS: Final = {"kind": "binary", "classes": ["control", "ad"]}
_AGE: Final = SyntheticT1w.targets["age"]
_VIEWS: Final = (  # Dhinagar et al.'s, as far as they are named
    {"name": "crop", "smallest": 0.8},
    {"name": "flip"},
    {"name": "affine", "degrees": 10.0, "voxels": 1.0},
    {"name": "gamma"},
    {"name": "noise"},
    {"name": "cutout", "cubes": 1},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is learnt at hospitals of its own: its target, and what sets their people apart."""

    title: str
    target: str
    table: Mapping[str, Any]
    people: Mapping[str, Any]

    @property
    def of_target(self) -> Target:
        """The target as a checked value."""
        return Target.model_validate(
            {**self.table, "classes": tuple(self.table.get("classes", ()))}
        )


TASKS: Final[Mapping[TaskName, Task]] = {
    "ad": Task(
        title="Alzheimer's disease against controls",
        target="diagnosis",
        table=_DIAGNOSIS,
        people={"pool": 1.0},
    ),
    "pd": Task(
        title="Parkinson's disease, for which the generator's second disease stands in",
        target="diagnosis",
        table=_DIAGNOSIS,
        people={"pool": 1.0, "shared_modes": False},
    ),
    "age": Task(title="age of controls", target="age", table=_AGE, people={"pool": 0.0}),
}


def tables_of(protocol: Protocol, cell: Cell) -> dict[str, Any]:
    """The tables of a cell's study, without its [start]."""
    architecture = protocol.architectures[cell.architecture]
    stage = protocol.downstream if cell.task else protocol.pretraining
    epochs = stage.local_epochs
    if cell.task:
        epochs = max(epochs, min(round(epochs / cell.share), stage.most_local_epochs))
    return {
        "name": cell.name,
        "seed": cell.seed,
        "backbone": architecture.backbone,
        "pretraining": {
            "rounds": stage.rounds,
            "local_epochs": epochs,
            "batch_size": stage.batch_size,
            "learning_rate": architecture.learning_rate,
            "warmup": architecture.warmup,
        },
        "comparisons": {"single_site": False, "pooled": cell.rivals},
        **(_task(protocol, cell) if cell.task else _pretext(protocol, cell)),
    }


def _task(protocol: Protocol, cell: Cell) -> dict[str, Any]:
    task = TASKS[cell.task]  # type: ignore[index]
    trains, judges = site_names(cell)
    return {
        "data": _scans(protocol),
        "targets": {task.target: dict(task.table)},
        "objective": {"name": "multitask"},
        "sites": {"train": trains, "heldout": judges},
        # every seed has other people in each part; cells of one seed have the same
        "splits": {
            "salt": f"seed-{cell.seed}", "validation": 0.25, "test": 0.0, "share": cell.share,
        },
        # seeds tell more than intervals; what needs no network is judged once
        "evaluation": {"bootstrap": 100, "baselines": cell.rivals},
    }  # fmt: skip


def _pretext(protocol: Protocol, cell: Cell) -> dict[str, Any]:
    grid = protocol.grid.model_dump()
    found: dict[str, Any] = {
        "data": _scans(protocol),
        "targets": {"age": _AGE, "sex": SyntheticT1w.targets["sex"]},
        "objective": {"name": "multitask"},
        "sites": {"train": site_names(cell)[0]},
        "splits": {"validation": 0.1, "test": 0.0},
    }
    if cell.source == "video":
        data = {"kind": "synthetic-video", "shape": grid["shape"]}
        return {**found, "data": data, "targets": SyntheticVideo.targets}
    if cell.source == "synthetic":
        data = {"kind": "synthetic-t1w", **grid, "align": "world"}
        return {**found, "data": data, "targets": SyntheticT1w.targets}
    if cell.source == "simclr":
        return {**found, "objective": {"name": "simclr"}, "augmentation": list(_VIEWS)}
    if cell.source == "masked":
        return {**found, "objective": protocol.architectures[cell.architecture].masked}
    return found


def _scans(protocol: Protocol) -> dict[str, Any]:
    return {"kind": "t1w", **protocol.grid.model_dump(), "align": "world"}


def group_of(cell: Cell) -> str:
    """Which hospitals a cell is run at: a task's own, or those of its pretraining."""
    made = {"video": "films", "synthetic": "heads"}
    return cell.task or made.get(cell.source, "pretraining")


def site_names(cell: Cell) -> tuple[list[str], list[str]]:
    """Those that train, and the one that has taken no part in anything, if the cell has a task."""
    group = group_of(cell)
    return [f"{group}-a", f"{group}-b"], [f"{group}-unseen"] if cell.task else []


def check_cells(protocol: Protocol, cells: Iterable[Cell], file: Path) -> None:
    """Refuse a protocol before its first cell where a study of it would be refused.

    Raises
    ------
    SettingError
        Naming the network.
    """
    seen = set()
    for cell in cells:
        kind = (cell.architecture, bool(cell.task) or cell.source)
        if kind not in seen:
            seen.add(kind)
            try:
                parse_study(tables_of(protocol, cell), Path(f"{cell.name}.toml"))
            except SettingError as error:
                raise SettingError(f"architectures.{cell.architecture}: {error} ({file})") from None


def write_group(protocol: Protocol, out: Path, cell: Cell, advance: Callable[[], None]) -> None:
    """Write the hospitals of a cell, or finish them."""
    group, (trains, judges) = group_of(cell), site_names(cell)
    folder, names = out / "hospitals" / group, [*trains, *judges]
    people = (protocol.downstream if cell.task else protocol.pretraining).people
    if group in ("films", "heads"):
        kind = "synthetic-video" if group == "films" else "synthetic-t1w"
        made = write_sources(folder, kind=kind, names=names, heldout=[], number=people, seed=0)
        _set_threads(made, protocol.threads)
        return
    made = write_hospitals(
        folder, names=names, heldout=judges, participants=people,
        spacing_mm=protocol.grid.spacing_mm, advance=advance,
        **(TASKS[cell.task].people if cell.task else {"pool": 0.0}),  # type: ignore[index]
    )  # fmt: skip
    _set_threads(made, protocol.threads)


def _set_threads(files: Iterable[Path], threads: int) -> None:
    """Say in site files on how many threads they train, where none does yet."""
    for file in files:
        text = file.read_text(encoding="utf-8")
        if threads and "\n[device]" not in text:
            write_atomically(file, f"{text}\n[device]\nthreads = {threads}\n".encode())


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of one protocol in one folder; `starts` holds what pretraining cells led to."""

    protocol: Protocol
    out: Path
    starts: dict[str, str]

    def run(self, cells: Iterable[Cell]) -> dict[str, str]:
        """Run what is not finished; names of the cells that failed, and why.

        The same command may run twice at once: a cell that another process works in is left to it,
        and looked at again at the end.

        Raises
        ------
        StorageError
            If the disk is full, which no other cell would survive.
        """
        asked = list(cells)
        self._write_hospitals(asked)
        return run_in_turn("cell", "the protocol", asked, self._one)

    def finished(self, cell: Cell) -> Run | None:
        """A cell's run, if it was finished by the study that the cell is now."""
        folder = self.folder(cell)
        try:
            is_same = (folder / "study.toml").read_text(encoding="utf-8") == self._text(cell)
        except (OSError, CallosumError):
            return None
        return read_run(folder) if is_same and (folder / "results.csv").exists() else None

    def folder(self, cell: Cell) -> Path:
        """A cell's run folder."""
        return self.out / "cells" / cell.name

    def study_file(self, cell: Cell) -> Path:
        """A cell's study file."""
        return self.out / "studies" / f"{cell.name}.toml"

    def study(self, cell: Cell) -> Study:
        """A cell's study without its start."""
        return parse_study(tables_of(self.protocol, cell), self.study_file(cell))

    def _one(self, cell: Cell) -> str:
        """Run one cell to its end; why it failed, or nothing."""
        return problem_of(cell.name, partial(self._run, cell))

    def _run(self, cell: Cell) -> None:
        if self.finished(cell) is None:
            write_atomically(self.study_file(cell), self._text(cell).encode())
            sites = self.out / "hospitals" / group_of(cell)
            simulate(self.study_file(cell), sites, self.folder(cell), workers=None)

    def _text(self, cell: Cell) -> str:
        """The study file of a cell, as it is now."""
        plain = tomli_w.dumps(tables_of(self.protocol, cell))
        origin = begins_from(cell)
        return plain if origin is None else f"{plain}\n{self._start(cell, origin, plain)}"

    def _start(self, cell: Cell, origin: Cell, plain: str) -> str:
        if origin.name not in self.starts:
            final = self.folder(origin) / "checkpoints" / "final.safetensors"
            if not final.exists() or self.finished(origin) is None:
                if is_held(self.folder(origin)):
                    raise RunBusyError(f"another process is working in {origin.name}")
                raise SettingError(f"it begins from {origin.name}, which is not finished")
            draft = self.study_file(cell).with_name(f".{cell.name}.toml")  # beside the study itself
            write_atomically(draft, plain.encode())
            self.starts[origin.name] = start_table(draft, final, "backbone", ())
            draft.unlink()
        return self.starts[origin.name]

    def _write_hospitals(self, cells: Iterable[Cell]) -> None:
        groups = {group_of(cell): cell for cell in cells if not self._begun(cell)}
        folder = self.out / "hospitals"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as held:
            lock(held, folder, wait=True, remedy="give --out a folder on a local disk")
            with track("writing hospitals, participants") as advance:
                for cell in groups.values():
                    write_group(self.protocol, self.out, cell, advance)

    def _begun(self, cell: Cell) -> bool:
        """Whether a cell has results: then its hospitals were all there."""
        return (self.folder(cell) / "results.csv").exists()
