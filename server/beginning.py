"""What a run takes over from the checkpoint that its study's `[start]` names, and keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray
from pydantic import ValidationError

from common.errors import DamagedError, SettingError
from common.network.merging import merged
from common.network.starting import taken
from common.protocol.orders import digest_of
from common.protocol.wire import Stored, write_arrays
from common.runtime.progress import say
from common.sections import Start
from common.study import Study
from server.checkpoints import about_checkpoint, seen_by
from server.lineage import Lineage

if TYPE_CHECKING:
    from server.run import Run

_START: Final = "start.safetensors"
_START_SEEN: Final = "start-seen.safetensors"


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


def mend_start(run: Run, study: Study, source: Path) -> None:
    """Take the arrays of the study's checkpoint again where the run's own copy is damaged."""
    if study.start is None:
        return
    try:
        Stored(run.folder / _START).check()
        start_seen(run)
    except DamagedError as error:
        say(f"{error}; it is taken again from start.file")
        begin = beginning_of(study, source)
        if begin is not None:
            begin.write(run.folder)


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a run takes from a checkpoint: arrays, whence they are, and tokens of what they saw."""

    arrays: Mapping[str, NDArray[Any]]
    lineage: Lineage
    seen: Mapping[str, NDArray[Any]]

    def write(self, folder: Path) -> None:
        """Keep it in a run folder."""
        write_arrays(folder / _START, self.arrays, {"lineage": self.lineage.model_dump_json()})
        if self.seen:
            write_arrays(folder / _START_SEEN, self.seen, {})


def beginning_of(study: Study, source: Path | None) -> Beginning | None:
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
    return Beginning(found, lineage, seen)


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
