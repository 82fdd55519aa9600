"""Checkpoints of one model: each whole or not there, the newest kept, a damaged one set aside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray
from pydantic import ValidationError

from common.arrays import Arrays
from common.errors import DamagedError, FolderError
from common.network.plan import Plan, Rule
from common.protocol.wire import Stored, write_arrays
from common.runtime.progress import say
from common.settings import Table
from common.study import Study
from server.lineage import Lineage
from server.run_files import read_sealed

FORMAT: Final = 3  # of run folders and checkpoints
SEEN: Final = "seen.safetensors"  # beside a model's checkpoints: tokens of scans that it saw
_KEPT_CHECKPOINTS: Final = 2  # the newest, and one more in case it is the disk that fails


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
        """Write a checkpoint; the last one becomes `final.safetensors`, without optimiser state.

        What it was made of goes: replies of earlier rounds, and the sums that settled constants.
        """
        path = self.final if last else self._path(checkpoint.round)
        arrays: Arrays = {f"model/{name}": array for name, array in checkpoint.arrays.items()}
        if not last:
            arrays |= {f"state/{name}": array for name, array in checkpoint.state.items()}
        write_arrays(path, arrays, _describe(checkpoint, study, plan, self.model))
        for old in self._numbered()[:-_KEPT_CHECKPOINTS]:
            old.unlink()
        past = self.round(checkpoint.round - _KEPT_CHECKPOINTS)
        for reply in (*past.glob("replies/*.safetensors"), *past.glob("unmask/*.safetensors")):
            reply.unlink()
        # products of people's features, in hundreds of megabytes: no longer kept than needed
        for sums in self.folder.glob("settle/*/*.safetensors"):
            sums.unlink()

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


def model_file(place: Path) -> Path:
    """The finished model in a run's or release's folder; a file is that model itself."""
    return place / "checkpoints" / "final.safetensors" if place.is_dir() else place


def seen_by(checkpoint: Path) -> Mapping[str, NDArray[Any]]:
    """Tokens that lie beside a run's checkpoint, as they were when it was made; {} without any."""
    path = checkpoint.parent.parent / SEEN
    return Stored(path).check() if path.exists() else {}


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
