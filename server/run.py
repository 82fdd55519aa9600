"""One folder for one execution of a study, written so that a crash at any instant loses nothing.

RUN/
  study.toml           the coordinator's file as it was
  study.json           the same, resolved and checked
  provenance.json      run id, study digest, versions
  start.safetensors    the checkpoint that the study begins from, if it has a [start]
  start-seen.safetensors  tokens of the scans that it has seen
  seen.safetensors     the same, and those of the sites that train here; counts alone are shown
  census/, overlap/    what each site holds, and tokens of its scans
  rounds/0001/         replies/SITE.safetensors, record.json
  settle/0000/         the sites' sums of which the network's constants were made
  checkpoints/         0000.safetensors (initial) ..., final.safetensors
  comparisons/MODEL/   rounds and checkpoints of a rival model
  labels/              what the training sites' labels add up to
  linear/, finetuning/, judge/, explain/, send/, cross/, evaluation/   reports of those orders
  results.csv, report.html

Every file is written whole or not at all, and holds a digest of what was written where a run reads
it again. A round is finished once its checkpoint stands; until then the same command takes it up
from its replies, which are removed two rounds later. A damaged checkpoint, the final one too, is
set aside as `NAME.damaged`, and made again from the one before and those replies.
"""

from __future__ import annotations

import importlib.metadata
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.errors import DamagedError, FolderError, RunBusyError
from common.protocol.code import agreed_digest
from common.runtime.durable import write_atomically
from common.runtime.locks import lock
from common.runtime.progress import say
from common.study import Study, read_resolved
from server.beginning import beginning_of, mend_start
from server.checkpoints import FORMAT, Branch, about_checkpoint
from server.run_files import check_seal, read_json, write_json, write_sealed

_VERSIONS: Final = ("callosum", "flwr", "torch", "numpy", "safetensors", "pydantic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An opened run folder; hold it through `open_run` so that one process works in it."""

    folder: Path
    id: str
    study: Study

    @property
    def federated(self) -> Branch:
        """The federated model's branch."""
        return Branch(self.folder, "federated")

    def comparison(self, model: str) -> Branch:
        """A rival model's branch."""
        return Branch(self.folder / "comparisons" / model, model)

    @property
    def linear(self) -> Path:
        """Linear models fitted to pooled data."""
        return self.folder / "linear"

    def branches(self) -> list[Branch]:
        """The federated branch and every comparison that has begun."""
        found = sorted(path.name for path in (self.folder / "comparisons").glob("*"))
        return [self.federated, *(self.comparison(name) for name in found)]


@contextmanager
def open_run(folder: Path, study: Study, source: Path | None = None) -> Iterator[Run]:
    """Create or resume the run of `study` in `folder`, for this process alone.

    Raises
    ------
    FolderError
        If the folder holds another study, another version's run, foreign files, or a live run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FolderError(f"{folder} is a file or below one; give --out a folder") from None
    foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if foreign and not (folder / "study.json").exists():
        raise FolderError(f"{folder} holds {foreign[0]} and is no run; choose an empty folder")
    with alone(folder):
        if not (folder / "provenance.json").exists():
            _create(folder, study, source)
        run = read_run(folder)
        _same_study(run, study)
        _tell_of_other_code(run, study)
        if source is not None:
            mend_start(run, study, source)
        yield run


def create_run(folder: Path, study: Study, source: Path) -> Run:
    """Make the run's folder, or check that it is this study's; a run may be going on in it.

    Raises
    ------
    FolderError
        If the folder holds another study or foreign files.
    """
    if (folder / "provenance.json").exists():
        run = read_run(folder)
        _same_study(run, study)
        return run
    with open_run(folder, study, source) as run:
        return run


def read_run(folder: Path) -> Run:
    """Open a run folder for reading."""
    path, file = folder / "provenance.json", folder / "study.json"
    provenance = read_json(path)
    found, run = provenance.get("format"), provenance.get("run")
    if found != FORMAT:
        versions = provenance.get("versions")
        version = versions.get("callosum", "?") if isinstance(versions, dict) else "?"
        raise FolderError(
            f"{folder} is a run of format {found}, this version reads {FORMAT}; "
            f"use callosum {version} or a new folder"
        )
    check_seal(provenance, path)
    study = read_resolved(read_json(file), file)
    if study.digest != provenance.get("study") or not isinstance(run, str):
        raise DamagedError(
            f"{file} is no longer the study that the run was started with; put it back from a "
            "backup, or give a new --out"
        )
    return Run(folder=folder, id=run, study=study)


def _create(folder: Path, study: Study, source: Path | None) -> None:
    begin = beginning_of(study, source)
    # study.json first: from then on the folder is known as a run, whatever happens next
    write_json(folder / "study.json", study.model_dump(mode="json"))
    if begin is not None:
        begin.write(folder)
    if source is not None:
        write_atomically(folder / "study.toml", source.read_bytes())
    versions = {name: _version(name) for name in _VERSIONS} | {"python": platform.python_version()}
    write_sealed(
        folder / "provenance.json",
        {
            "format": FORMAT,
            "run": secrets.token_hex(32),
            "study": study.digest,
            "code": agreed_digest(study),
            "versions": versions,
        },
    )


def _tell_of_other_code(run: Run, study: Study) -> None:
    """A run may go on after an update; that its rounds are then of two codes is never silent."""
    begun, now = read_json(run.folder / "provenance.json").get("code"), agreed_digest(study)
    if begun != now and not run.federated.final.exists():
        say(
            f"{run.folder} was begun with other code ({str(begun or 'not noted')[:12]}, now "
            f"{now[:12]}): what it trains from here on may differ from its rounds so far; for one "
            "model of one code give a new --out"
        )


def lineage_told(run: Run) -> list[str]:
    """What went into the finished model, a sentence each; a damaged one is no error to a reader."""
    if not run.federated.final.exists():
        return []
    try:
        return about_checkpoint(run.federated.final).lineage.told()
    except DamagedError:
        return ["its checkpoint is damaged, and cannot tell"]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _same_study(run: Run, study: Study) -> None:
    if run.study.digest == study.digest:
        return
    changed = _differences(run.study.model_dump(mode="json"), study.model_dump(mode="json"))
    raise FolderError(
        f"{run.folder} was started with another version of the study; changed: "
        f"{', '.join(changed[:5])}. Give a new --out, or restore the study "
        f"({run.folder / 'study.toml'} is as it was)"
    )


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        return found
    return [] if old == new else [f"{at} (was {old}, is {new})"]


def is_held(folder: Path) -> bool:
    """Whether a process works in the folder, asked without disturbing one that is about to."""
    try:
        inode = (folder / ".lock").stat().st_ino
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    return any("FLOCK" in line and f":{inode} " in line for line in locks)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets go of it however the process ends."""
    try:
        held = (folder / ".lock").open("a")
    except OSError as error:
        raise FolderError(f"{folder} cannot be written: {error}") from None
    with held:
        try:
            lock(held, folder, wait=False, remedy="give the folder a place on a local disk")
        except BlockingIOError:
            raise RunBusyError(f"another process is working in {folder}; wait for it") from None
        yield
