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
  linear/, finetuning/, judge/, explain/, send/, evaluation/   reports of those orders
  results.csv, report.html

Every file is written whole or not at all, and holds a digest of what was written where a run reads
it again. A round is finished once its checkpoint stands; until then the same command takes it up
from its replies, which are removed two rounds later. A damaged checkpoint, the final one too, is
set aside as `NAME.damaged`, and made again from the one before and those replies.
"""

from __future__ import annotations

import hashlib
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
from pydantic import ValidationError

from common.arrays import Arrays
from common.errors import DamagedError, FolderError, RunBusyError, SettingError
from common.network.merging import merged
from common.network.plan import Plan, Rule
from common.network.starting import taken
from common.protocol.bounded_json import parsed
from common.protocol.code import agreed_digest
from common.protocol.orders import digest_of
from common.protocol.wire import Stored, write_arrays
from common.runtime.durable import write_atomically
from common.runtime.locks import lock
from common.runtime.progress import say
from common.sections import Start
from common.settings import Table
from common.study import Study, read_resolved
from server.lineage import Lineage

FORMAT: Final = 3
_KEPT_CHECKPOINTS: Final = 2  # the newest, and one more in case it is the disk that fails
_START: Final = "start.safetensors"
_START_SEEN: Final = "start-seen.safetensors"
SEEN: Final = "seen.safetensors"  # beside a model's checkpoints: tokens of scans that it saw
_SEAL: Final = "sha256"  # in a JSON table: the digest of all its other entries
_VERSIONS: Final = ("callosum", "flwr", "torch", "numpy", "safetensors", "pydantic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Global arrays after a round, read from disk where needed, with what they came from."""

    round: int
    arrays: Mapping[str, NDArray[Any]]
    state: Mapping[str, NDArray[Any]]
    lineage: Lineage


class About(Table):
    """What a checkpoint says of itself."""

    format: int
    study: str
    name: str
    model: str
    round: int
    lineage: Lineage
    plan: dict[str, Rule]


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

    @property
    def seen(self) -> Path:
        """Tokens of all scans that went into the model, along its lineage."""
        return self.folder / SEEN

    def records(self) -> list[dict[str, Any]]:
        """Records of all finished rounds, first to last."""
        return [read_sealed(path) for path in sorted(self.folder.glob("rounds/*/record.json"))]

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
        """The newest checkpoint that is what was written, or None before the first round.

        A damaged one is set aside, and said to be: the rounds after the one before it are averaged
        again from their replies, to the same bits. For the process that works in the folder.

        Raises
        ------
        DamagedError
            If there are checkpoints, and all are damaged.
        """
        found = self._newest_first()
        for path in found:
            try:
                return load_checkpoint(path, study)
            except DamagedError as error:
                say(f"{error}; it is set aside, and the checkpoint before it is taken")
                path.replace(path.with_suffix(".damaged"))
        if found:
            raise DamagedError(
                f"all checkpoints in {found[0].parent} were damaged and are set aside; look after "
                f"the disk. The same command then trains {self.model} again from its first round"
            )
        return None

    def plan(self, study: Study) -> Plan:
        """The rules of the model's arrays, as its newest checkpoint holds them."""
        return about_checkpoint(self._newest_first()[0], study).plan

    def _newest_first(self) -> list[Path]:
        return [*([self.final] if self.final.exists() else ()), *reversed(self._numbered())]

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
        _tell_of_other_code(run, study)
        if source is not None:
            _mend_start(run, study, source)
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
    _check_seal(provenance, path)
    study = read_resolved(read_json(file), file)
    if study.digest != provenance.get("study") or not isinstance(run, str):
        raise DamagedError(
            f"{file} is no longer the study that the run was started with; put it back from a "
            "backup, or give a new --out"
        )
    return Run(folder=folder, id=run, study=study)


def load_checkpoint(path: Path, study: Study) -> Checkpoint:
    """Read a checkpoint of `study` whose arrays are all what was written.

    Raises
    ------
    DamagedError
        If the file is damaged; the run's own command makes it again.
    FolderError
        If it belongs to another study.
    """
    about = about_checkpoint(path, study)
    return Checkpoint(
        round=about.round,
        arrays=Stored(path, "model/").check(),
        state=Stored(path, "state/").check(),
        lineage=about.lineage,
    )


def about_checkpoint(path: Path, study: Study | None = None) -> About:
    """What a checkpoint says of itself, without a look at its arrays."""
    try:
        about = About.model_validate_json(Stored(path).text("checkpoint"))
    except ValidationError:
        raise DamagedError(f"{path} is damaged or not Callosum's: it is no checkpoint") from None
    if study is not None and about.study != study.digest:
        raise FolderError(f"{path} belongs to another study ({about.name})")
    return about


def write_json(path: Path, value: object) -> None:
    """Write readable JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table of a run folder; `DamagedError` if the file holds none."""
    try:
        found = parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderError(f"{path.parent} is not a run: {path} is missing") from None
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise DamagedError(f"{path} cannot be read: it holds no table")
    return found


def read_refused(path: Path) -> dict[str, str]:
    """Who declined the orders of a folder, and with which code."""
    found = read_json(path)
    if not all(isinstance(code, str) for code in found.values()):
        raise DamagedError(f"{path} cannot be read: it holds something else than codes")
    return found


def write_sealed(path: Path, table: Mapping[str, Any]) -> None:
    """Write a JSON table with the digest of its content, for `read_sealed`."""
    plain = {name: value for name, value in table.items() if name != _SEAL}
    write_json(path, {**plain, _SEAL: _seal(plain)})


def read_sealed(path: Path) -> dict[str, Any]:
    """A table that `write_sealed` wrote, as it was written.

    Raises
    ------
    DamagedError
        If it was changed since.
    """
    found = read_json(path)
    _check_seal(found, path)
    return found


def _check_seal(table: dict[str, Any], path: Path) -> None:
    if table.pop(_SEAL, None) != _seal(table):
        raise DamagedError(
            f"{path} is no longer what was written; put it back from a backup, or give a new --out"
        )


def _seal(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _describe(checkpoint: Checkpoint, study: Study, plan: Plan, model: str) -> dict[str, str]:
    """Metadata without times or ids: the same training gives the same file."""
    about = {
        "format": FORMAT,
        "study": study.digest,
        "name": study.name,
        "model": model,
        "round": checkpoint.round,
        "lineage": checkpoint.lineage.model_dump(mode="json"),
        "plan": {name: rule.as_json() for name, rule in plan.items()},
    }
    return {"checkpoint": json.dumps(about, sort_keys=True)}


def _create(folder: Path, study: Study, source: Path | None) -> None:
    begin = _begin(study, source)
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


def _mend_start(run: Run, study: Study, source: Path) -> None:
    """Take the arrays of the study's checkpoint again where the run's own copy is damaged."""
    if study.start is None:
        return
    try:
        Stored(run.folder / _START).check()
        start_seen(run)
    except DamagedError as error:
        say(f"{error}; it is taken again from start.file")
        begin = _begin(study, source)
        if begin is not None:
            begin.write(run.folder)


def lineage_told(run: Run) -> list[str]:
    """What went into the finished model, a sentence each; a damaged one is no error to a reader."""
    if not run.federated.final.exists():
        return []
    try:
        return about_checkpoint(run.federated.final).lineage.told()
    except DamagedError:
        return ["its checkpoint is damaged, and cannot tell"]


def start_arrays(run: Run) -> Mapping[str, NDArray[Any]]:
    """The arrays that the run takes from its study's checkpoint; none without a `[start]`."""
    return Stored(run.folder / _START) if run.study.start is not None else {}


def start_lineage(run: Run) -> Lineage | None:
    """The lineage of the checkpoint that the run's study begins from, if it does from any."""
    if run.study.start is None:
        return None
    try:
        return Lineage.model_validate_json(Stored(run.folder / _START).text("lineage"))
    except ValidationError:
        raise DamagedError(f"{run.folder / _START} is damaged: it holds no lineage") from None


def start_seen(run: Run) -> Mapping[str, NDArray[Any]]:
    """Tokens of the scans that went into that checkpoint; none where none were kept beside it."""
    start = run.study.start
    return Stored(run.folder / _START_SEEN).check() if start is not None and start.seen else {}


def model_file(place: Path) -> Path:
    """The finished model in a run's or release's folder; a file is that model itself."""
    return place / "checkpoints" / "final.safetensors" if place.is_dir() else place


def seen_by(checkpoint: Path) -> Mapping[str, NDArray[Any]]:
    """Tokens that lie beside a run's checkpoint, as they were when it was made; {} without any."""
    path = checkpoint.parent.parent / SEEN
    return Stored(path).check() if path.exists() else {}


@dataclass(frozen=True, slots=True)
class _Begin:
    """What a run takes from a checkpoint: arrays, whence they are, and tokens of what they saw."""

    arrays: Mapping[str, NDArray[Any]]
    lineage: Lineage
    seen: Mapping[str, NDArray[Any]]

    def write(self, folder: Path) -> None:
        write_arrays(folder / _START, self.arrays, {"lineage": self.lineage.model_dump_json()})
        if self.seen:
            write_arrays(folder / _START_SEEN, self.seen, {})


def _begin(study: Study, source: Path | None) -> _Begin | None:
    """What `[start]` names, from its file, if it is all what it names."""
    start = study.start
    if start is None:
        return None
    if source is None or not start.file:
        raise SettingError("start.file is missing; only the run's first command needs it")
    path = source.parent / start.file
    if not path.exists():
        raise SettingError(f"start.file is {path}, which does not exist ({source})")
    found = taken(start, merged(Stored(path, "model/")))
    digest = digest_of(found)
    if digest != start.arrays:
        raise SettingError(
            f"start.arrays is {start.arrays[:12]}..., but the arrays in {path} are "
            f"{digest[:12]}...; callosum study start writes the table anew ({source})"
        )
    lineage, seen = about_checkpoint(path).lineage, seen_by(path)
    wrong = _unlike(start, lineage, seen)
    if wrong:
        raise SettingError(
            f"start.{wrong} is not that of {path}, which says who may not judge; callosum study "
            f"start writes the table anew ({source})"
        )
    return _Begin(found, lineage, seen)


def _unlike(start: Start, lineage: Lineage, seen: Mapping[str, NDArray[Any]]) -> str:
    """The first key of `[start]` that says something else than the checkpoint does."""
    wanted = told_of(lineage, seen)
    return next((key for key, value in wanted.items() if getattr(start, key) != value), "")


def told_of(lineage: Lineage, seen: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What a `[start]` table says of the lineage of a checkpoint."""
    return {
        "contributors": lineage.contributors,
        "cohorts": lineage.cohorts,
        "salt": lineage.salt,
        "lineage": lineage.digest,
        "seen": digest_of(seen) if seen else "",
    }


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
