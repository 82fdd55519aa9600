"""One folder for one execution of a study, written so that a crash at any instant loses nothing.

RUN/
  study.toml           the coordinator's file as it was
  study.json           the same, resolved and checked
  provenance.json      run id, study digest, versions
  start.safetensors    the checkpoint that the study begins from, if it has a [start]
  census/              what each site holds
  rounds/0001/         replies/SITE.safetensors, record.json
  settle/0000/         the sites' sums of which the network's constants were made
  checkpoints/         0000.safetensors (initial) ..., final.safetensors
  comparisons/MODEL/   rounds and checkpoints of a rival model
  linear/, finetuning/, judge/, explain/, send/, evaluation/   reports of those orders
  results.csv, report.html

Every file is written whole or not at all. A round is finished once its checkpoint stands; until
then the same command takes it up from its replies, which are removed two rounds later.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import platform
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from common.arrays import Arrays
from common.errors import FolderError, RunBusyError, SettingError
from common.network.plan import Plan, plan_from_json
from common.network.starting import taken
from common.protocol.orders import digest_of
from common.protocol.wire import Stored, open_arrays, write_arrays
from common.runtime.durable import write_atomically
from common.study import Study, read_resolved

FORMAT: Final = 1
_KEPT_CHECKPOINTS: Final = 2  # the newest, and one more in case it is the disk that fails
_START: Final = "start.safetensors"
_VERSIONS: Final = ("callosum", "flwr", "torch", "numpy", "safetensors", "pydantic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Global arrays after a round, read from disk where needed, with what they came from."""

    round: int
    arrays: Mapping[str, NDArray[Any]]
    state: Mapping[str, NDArray[Any]]
    contributors: tuple[str, ...]
    cohorts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """Rounds and checkpoints of one model; the run's own folder, or one comparison's."""

    folder: Path
    model: str

    def round(self, number: int) -> Path:
        """Folder of one round."""
        return self.folder / "rounds" / f"{number:04d}"

    @property
    def final(self) -> Path:
        """The finished model."""
        return self.folder / "checkpoints" / "final.safetensors"

    def records(self) -> list[dict[str, Any]]:
        """Records of all finished rounds, first to last."""
        found = sorted(self.folder.glob("rounds/*/record.json"))
        return [json.loads(path.read_text()) for path in found]

    def save(self, checkpoint: Checkpoint, study: Study, plan: Plan, *, last: bool) -> None:
        """Write a checkpoint; the last one becomes `final.safetensors`, without optimiser state."""
        path = self.final if last else self._path(checkpoint.round)
        arrays: Arrays = {f"model/{name}": array for name, array in checkpoint.arrays.items()}
        if not last:
            arrays |= {f"state/{name}": array for name, array in checkpoint.state.items()}
        write_arrays(path, arrays, _describe(checkpoint, study, plan, self.model))
        for old in self._numbered()[:-_KEPT_CHECKPOINTS]:
            old.unlink()
        for reply in self.round(checkpoint.round - _KEPT_CHECKPOINTS).glob("replies/*.safetensors"):
            reply.unlink()

    def latest(self, study: Study) -> Checkpoint | None:
        """The newest checkpoint, or None before the first round."""
        if self.final.exists():
            return load_checkpoint(self.final, study)
        numbered = self._numbered()
        return load_checkpoint(numbered[-1], study) if numbered else None

    def plan(self, study: Study) -> Plan:
        """The rules of the model's arrays, as its newest checkpoint holds them."""
        path = self.final if self.final.exists() else self._numbered()[-1]
        return plan_from_json(_about(path, study)["plan"])

    def _path(self, number: int) -> Path:
        return self.folder / "checkpoints" / f"{number:04d}.safetensors"

    def _numbered(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("[0-9]*.safetensors"))


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
    try:
        provenance = json.loads((folder / "provenance.json").read_text())
        table = json.loads((folder / "study.json").read_text())
    except FileNotFoundError as error:
        raise FolderError(f"{folder} is not a run: {error.filename} is missing") from None
    except (OSError, ValueError) as error:
        raise FolderError(f"{folder} cannot be read as a run: {error}") from None
    found = provenance.get("format")
    if found != FORMAT:
        raise FolderError(
            f"{folder} is a run of format {found}, this version reads {FORMAT}; "
            f"use callosum {provenance.get('versions', {}).get('callosum', '?')} or a new folder"
        )
    return Run(
        folder=folder, id=provenance["run"], study=read_resolved(table, folder / "study.json")
    )


def load_checkpoint(path: Path, study: Study) -> Checkpoint:
    """Read a checkpoint of `study`; another study's is refused.

    Raises
    ------
    FolderError
        If the file is damaged or belongs to another study.
    """
    about = _about(path, study)
    return Checkpoint(
        round=about["round"],
        arrays=Stored(path, "model/"),
        state=Stored(path, "state/"),
        contributors=tuple(about["contributors"]),
        cohorts=tuple(about["cohorts"]),
    )


def _about(path: Path, study: Study) -> dict[str, Any]:
    with open_arrays(path) as file:
        about: dict[str, Any] = json.loads(file.text("checkpoint"))
    if about["study"] != study.digest:
        raise FolderError(f"{path} belongs to another study ({about['name']})")
    return about


def write_json(path: Path, value: object) -> None:
    """Write readable JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def _describe(checkpoint: Checkpoint, study: Study, plan: Plan, model: str) -> dict[str, str]:
    """Metadata without times or ids: the same training gives the same file."""
    about = {
        "format": FORMAT,
        "study": study.digest,
        "name": study.name,
        "model": model,
        "round": checkpoint.round,
        "contributors": sorted(checkpoint.contributors),
        "cohorts": sorted(checkpoint.cohorts),
        "plan": {name: rule.as_json() for name, rule in plan.items()},
    }
    return {"checkpoint": json.dumps(about, sort_keys=True)}


def _create(folder: Path, study: Study, source: Path | None) -> None:
    begin = _begin(study, source)
    # study.json first: from then on the folder is known as a run, whatever happens next
    write_json(folder / "study.json", study.model_dump(mode="json"))
    if begin:
        write_arrays(folder / _START, begin, {})
    if source is not None:
        write_atomically(folder / "study.toml", source.read_bytes())
    versions = {name: _version(name) for name in _VERSIONS} | {"python": platform.python_version()}
    write_json(
        folder / "provenance.json",
        {
            "format": FORMAT,
            "run": secrets.token_hex(32),
            "study": study.digest,
            "versions": versions,
        },
    )


def start_arrays(run: Run) -> Mapping[str, NDArray[Any]]:
    """The arrays that the run takes from its study's checkpoint; none without a `[start]`."""
    return Stored(run.folder / _START) if run.study.start is not None else {}


def _begin(study: Study, source: Path | None) -> Mapping[str, NDArray[Any]]:
    """The arrays that `[start]` names, from its file, if they are the ones that it names."""
    start = study.start
    if start is None:
        return {}
    if source is None or not start.file:
        raise SettingError("start.file is missing; only the run's first command needs it")
    path = source.parent / start.file
    if not path.exists():
        raise SettingError(f"start.file is {path}, which does not exist ({source})")
    found = taken(start, Stored(path, "model/"))
    digest = digest_of(found)
    if digest != start.arrays:
        raise SettingError(
            f"start.arrays is {start.arrays[:12]}..., but the arrays in {path} are "
            f"{digest[:12]}...; callosum study start writes the table anew ({source})"
        )
    return found


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
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise FolderError(f"{folder} cannot be written: {error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunBusyError(f"another process is working in {folder}; wait for it") from None
        yield
