"""Synthetic hospitals of functional runs, as BIDS, with each state's true activation beside."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.data.synthesis.activation import (
    STATES,
    TASKS,
    TaskName,
    Ward,
    activation,
    blocks_of,
    draw_run,
    scanner_of,
)
from client.data.synthesis.anatomy import Anatomy, build_anatomy
from common.errors import SettingError, StorageError
from common.runtime.durable import write_atomically
from deploy.hospitals.folders import (
    DESCRIPTION,
    MARKER,
    as_written,
    check_names,
    description,
    identity,
    is_complete,
)

TRUTH: Final = "derivatives/truth"  # state-NAME_activation.nii.gz below, in percent of the signal
_MASK: Final = "derivatives/masks/brain_mask.nii.gz"


def write_task_fmri(
    out: Path,
    *,
    names: Sequence[str],
    participants: int,
    spacing_mm: float = 8.0,
    strength: float = 1.0,
    seed: int = 0,
    heldout: Sequence[str] = (),
    advance: Callable[[], None] | None = None,
) -> list[Path]:
    """Write one BIDS folder and one site file a hospital; finish what an earlier call began.

    Two of three participants do the task of sixteen signs, the others that of four memories.
    `advance` is called once a participant.

    Raises
    ------
    SettingError
        Before anything is written.
    FolderError
        Where a folder of that name holds other settings or something else.
    StorageError
        Where the disk is full or cannot be written.
    """
    check_names(names, heldout)
    if participants < 1:
        raise SettingError(f"participants is {participants}; it must be 1 or more")
    anatomy = build_anatomy(spacing_mm)
    wards = {name: Ward(name=name, seed=seed, strength=strength) for name in names}
    whole = {
        name: is_complete(out / name, _settings(ward, anatomy, participants))
        for name, ward in wards.items()
    }
    try:
        for name, ward in wards.items():
            steps: Iterable[object] = range(participants)
            if not whole[name]:
                steps = _write(out / name, ward, anatomy, participants, held=name in heldout)
            for _ in steps:
                if advance is not None:
                    advance()
    except OSError as error:
        raise StorageError(f"the hospitals cannot be written to {out}: {error}") from error
    return [out / name / "site.toml" for name in names]


def task_of(person: int) -> TaskName:
    """Which task a person does: a third that of memories, the others that of signs."""
    return "memory" if person % 3 == 1 else "signs"


def _settings(ward: Ward, anatomy: Anatomy, participants: int) -> dict[str, object]:
    """All that the hospital's files depend on."""
    own = {"kind": "bold", "spacing_mm": anatomy.spacing_mm, "participants": participants}
    return as_written({**asdict(ward), **own})


def _write(
    folder: Path,
    ward: Ward,
    anatomy: Anatomy,
    participants: int,
    *,
    held: bool,
) -> Iterator[None]:
    """One hospital, yielding after each participant; what is there already is not drawn again."""
    bids, settings = folder / "bids", _settings(ward, anatomy, participants)
    # first of all, so that what a killed write leaves can be told from somebody's own data
    _put(bids / DESCRIPTION, _json(description(ward.name, "raw", settings)))
    _put(bids / "README", _README.format(name=ward.name).encode())
    people = [identity(person) for person in range(participants)]
    rows = [(name, task_of(person)) for person, name in enumerate(people)]
    _put(bids / "participants.tsv", _table(("participant_id", "task"), rows))
    for task in TASKS:
        side = {"TaskName": task, "RepetitionTime": scanner_of(ward).repetition_time_s}
        _put(bids / f"task-{task}_bold.json", _json(side))
    _put_image(bids / _MASK, anatomy.brain.astype(np.uint8), anatomy)
    _put(bids / TRUTH / DESCRIPTION, _json(description(ward.name, "derivative")))
    for state, truth in zip(STATES, activation(anatomy), strict=True):
        name = f"state-{state}_activation.nii.gz"
        _put_image(bids / TRUTH / name, truth.astype(np.float32), anatomy)
    for person, name in enumerate(people):
        task = task_of(person)
        stem = bids / name / "func" / f"{name}_task-{task}"
        events = [(f"{b.onset_s:g}", f"{b.duration_s:g}", b.state)
                  for b in blocks_of(ward, person, task)]  # fmt: skip
        _put(stem.with_name(f"{stem.name}_events.tsv"),
             _table(("onset", "duration", "trial_type"), events))  # fmt: skip
        image = stem.with_name(f"{stem.name}_bold.nii.gz")
        if not image.exists():
            step_s = scanner_of(ward).repetition_time_s
            _put_image(image, draw_run(anatomy, ward, person, task), anatomy, step_s)
        yield
    role = "heldout" if held else "train"
    _put(folder / "site.toml", _SITE_FILE.format(name=ward.name, role=role, mask=_MASK).encode())
    _put(folder / MARKER, _json({"HospitalSettings": settings}))


def _put(file: Path, content: bytes) -> None:
    """Write a file, unless it is there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)


def _put_image(
    file: Path, voxels: NDArray[Any], anatomy: Anatomy, repetition_time_s: float = 0.0
) -> None:
    image: Any = nib.Nifti1Image(voxels, anatomy.affine)  # type: ignore[no-untyped-call]
    image.set_sform(anatomy.affine, code="mni")
    image.set_qform(anatomy.affine, code="mni")
    image.header.set_xyzt_units("mm", "sec")
    if repetition_time_s:
        image.header["pixdim"][4] = repetition_time_s
    _put(file, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in (header, *rows)).encode()


_README: Final = """\
Synthetic hospital {name}

No real person was scanned. Brains are the MNI152 template; thirty blobs in it answer twenty drawn
states, differently in each drawn person, as a scanner of the hospital's own would see it. What an
average brain answers to each state is below derivatives/truth, in percent of the signal. Written by
Callosum.
"""

_SITE_FILE: Final = """\
name = "{name}"
role = "{role}"
secret = "synthetic-{name}"  # nobody to protect, and the same people train each time

[data]
kind = "bold"
root = "bids"  # relative to this file
mask = "{mask}"

[targets.sign]
column = "sign"

[targets.memory]
column = "memory"

[policy]
# with "explain": a map that is a mean over test participants may leave
orders = ["census", "overlap", "settle", "train", "finetune", "judge", "explain", "evaluate"]
minimum_cohort = 1
minimum_support = 1   # nobody is behind these numbers; for real people 10
"""
