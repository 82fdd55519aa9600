"""Synthetic hospitals, written to disk as BIDS and finished where an earlier call stopped.

The images are skull-stripped, in MNI space, and of no real person.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np

from client.data.synthesis.anatomy import Anatomy, Volume, build_anatomy
from client.data.synthesis.people import Hospital, People, draw_labels, draw_people, scan
from client.data.synthesis.regions import PAIRS, Floats, both_sides
from common.errors import SettingError, StorageError
from deploy.hospitals.folders import (
    DESCRIPTION,
    MARKER,
    as_written,
    check_names,
    description,
    identity,
    is_complete,
)

VOLUMES: Final = (*(f"{pair}_volume" for pair in PAIRS), "tiv")  # of both sides, and the head
_VOLUME: Final[dict[str, object]] = {
    "Description": "Volume of both sides, adjusted for head size; tiv: of the whole head",
    "Units": "ml",
}
_GENERATOR: Final = 2  # raised when the same settings come to mean other people or other scans
_INTENSITY: Final = 1000  # scanner units of a rendered intensity of 1
_COLUMNS: Final[dict[str, dict[str, object]]] = {
    "age": {"Description": "Age at the first scan", "Units": "years"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "handedness": {"Description": "Hand used for writing", "Levels": {"right": "", "left": ""}},
    "bmi": {"Description": "Body mass index", "Units": "kg/m^2"},
    "fluid_intelligence": {"Description": "Fluid intelligence", "Units": "standard score"},
    "neuroticism": {"Description": "Neuroticism", "Units": "standard score"},
    "diagnosis": {
        "Description": "Diagnosis; n/a for people outside the clinical sample",
        "Levels": {"control": "no dementia", "ad": "Alzheimer's disease"},
    },
    **dict.fromkeys(VOLUMES, _VOLUME),
}


def write_hospitals(  # noqa: PLR0913 - keywords of one experiment; a value would only rename them
    out: Path,
    *,
    names: Sequence[str],
    participants: int,
    spacing_mm: float = 8.0,
    strength: float = 1.0,
    seed: int = 0,
    heldout: Sequence[str] = (),
    clinics: Sequence[str] = (),
    pool: float = 0.5,
    shared_modes: bool = True,
    shuffle_labels: bool = False,
    threads: int = 0,
    advance: Callable[[], None] | None = None,
) -> list[Path]:
    """Write one BIDS folder and one site file a hospital; finish what an earlier call began.

    Parameters
    ----------
    names
        All hospitals, in the order of the result; `heldout` names some of them.
    clinics
        Names some whose participants are all in the clinical sample (diagnosis known).
    pool
        Share of each other hospital's participants in its clinical sample.
    threads
        What the site files say of `device.threads`; 0 leaves it to the machine.
    advance
        Called once a participant, also for participants that were there already.

    Returns
    -------
    list of Path
        The site files, `OUT/<name>/site.toml`.

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
    check_names(names, clinics, "clinics")
    _check(participants, strength, pool)
    hospitals = [
        Hospital(
            name=name,
            participants=participants,
            seed=seed,
            role="heldout" if name in heldout else "train",
            strength=strength,
            pool=1.0 if name in clinics else pool,
            shared_modes=shared_modes,
            shuffle_labels=shuffle_labels,
        )
        for name in names
    ]
    anatomy = build_anatomy(spacing_mm)
    complete = {one.name: is_complete(out / one.name, _settings(one, anatomy)) for one in hospitals}
    try:
        for hospital in hospitals:
            steps: Iterable[object] = range(participants)
            if not complete[hospital.name]:
                steps = _write(out / hospital.name, hospital, anatomy, threads)
            for _ in steps:
                if advance is not None:
                    advance()
    except OSError as error:
        raise StorageError(f"the hospitals cannot be written to {out}: {error}") from error
    return [out / name / "site.toml" for name in names]


def _check(participants: int, strength: float, pool: float) -> None:
    if participants < 1:
        raise SettingError(f"participants is {participants}; it must be 1 or more")
    if strength < 0:
        raise SettingError(f"strength is {strength}; it must be 0 or more")
    if not 0 <= pool <= 1:
        raise SettingError(f"pool is {pool}; it must be from 0 to 1")


def _settings(hospital: Hospital, anatomy: Anatomy) -> dict[str, object]:
    """All that the hospital's files depend on, as JSON gives it back."""
    own = {
        "generator": _GENERATOR,
        "spacing_mm": anatomy.spacing_mm,
        "shape": anatomy.shape,
    }
    return as_written({**asdict(hospital), **own})


def _write(folder: Path, hospital: Hospital, anatomy: Anatomy, threads: int) -> Iterator[None]:
    """Write one hospital, yielding after each participant; its marker comes last."""
    people, bids = draw_people(hospital, anatomy.modes), folder / "bids"
    settings = _settings(hospital, anatomy)
    first = _volumes(anatomy, people)[:, 0].T
    labels = {
        **draw_labels(hospital, people),
        **{name: _in_ml(ml) for name, ml in zip(VOLUMES, first, strict=True)},
    }
    # First of all, so that what a killed write leaves can be told from somebody's own data.
    _write_json(bids / DESCRIPTION, description(hospital.name, "raw", settings))
    _write_text(bids / "README", _README.format(name=hospital.name))
    _write_json(bids / "participants.json", {name: _COLUMNS[name] for name in labels})
    identities = [identity(person) for person in range(hospital.participants)]
    rows = zip(identities, *labels.values(), strict=True)
    _write_table(bids / "participants.tsv", ["participant_id", *labels], rows)
    _write_regions(bids / "derivatives" / "regions", hospital, anatomy, people)
    for person in range(hospital.participants):
        for session in range(people.scans[person]):
            file = bids / _scan_path(person, session, people)
            if not file.exists():
                _write_scan(file, scan(anatomy, hospital, people, person, session), anatomy.affine)
        yield
    _write_text(folder / "site.toml", _site_file(hospital, labels, threads))
    _write_json(folder / MARKER, {"HospitalSettings": settings})


def _write_regions(folder: Path, hospital: Hospital, anatomy: Anatomy, people: People) -> None:
    _write_json(folder / DESCRIPTION, description(hospital.name, "derivative"))
    _write_json(folder / "regions.json", dict.fromkeys(VOLUMES, _VOLUME))
    volumes = _volumes(anatomy, people)
    rows = []
    for person, scans in enumerate(people.scans):
        for session in range(scans):
            label = _session(session) if scans > 1 else "n/a"
            rows.append([identity(person), label, *_in_ml(volumes[person, session])])
    _write_table(folder / "regions.tsv", ["participant_id", "session", *VOLUMES], rows)


def _volumes(anatomy: Anatomy, people: People) -> Floats:
    """Millilitres (N, 2, P + 1): of each pair of regions, adjusted for head size, and the head."""
    head_mm3 = anatomy.brain.sum() * anatomy.spacing_mm**3
    template = [*(2 * both_sides(anatomy.regions.volumes_mm3)), head_mm3]
    measured = np.concatenate([people.log_volumes, people.log_size[..., None]], axis=2)
    return np.asarray(template * np.exp(measured) / 1000)


def _in_ml(volumes: Floats) -> list[str]:
    return [f"{volume:.3f}" for volume in volumes]


def _session(session: int) -> str:
    return f"ses-{session + 1:02d}"


def _scan_path(person: int, session: int, people: People) -> Path:
    names = [identity(person)] + ([_session(session)] if people.scans[person] > 1 else [])
    return Path(*names, "anat", "_".join([*names, "T1w.nii.gz"]))


def _write_scan(file: Path, volume: Volume, affine: Floats) -> None:
    units = np.clip(np.rint(volume * _INTENSITY), 0, 32_767).astype(np.int16)
    image: Any = nib.Nifti1Image(units, affine)  # type: ignore[no-untyped-call]  # as nibabel is
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    image.header.set_xyzt_units("mm")
    _write_bytes(file, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_table(file: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([header, *rows])
    _write_text(file, text.getvalue())


def _write_json(file: Path, content: Mapping[str, object]) -> None:
    _write_text(file, json.dumps(content, indent=2) + "\n")


def _write_text(file: Path, text: str) -> None:
    _write_bytes(file, text.encode())


def _write_bytes(file: Path, content: bytes) -> None:
    """Write a file that is either whole or absent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(content)
    partial.replace(file)


_README: Final = """\
Synthetic hospital {name}

No real person was scanned. Heads are the MNI152 template, warped and recoloured by drawn ages,
phenotypes and a disease; each hospital has a drawn scanner of its own. Images are skull-stripped
(0 outside the brain), in MNI space, in arbitrary units. Written by Callosum.
"""


def _site_file(hospital: Hospital, labels: Mapping[str, object], threads: int) -> str:
    lines = [
        f'name = "{hospital.name}"',
        f'role = "{hospital.role}"',
        'secret = "synthetic"  # nobody to protect, and the same people train each time',
        "",
        "[data]",
        'kind = "t1w"',
        'root = "bids"  # relative to this file',
        'regions = "bids/derivatives/regions/regions.tsv"',
        "",
    ]
    lines += ["[targets]", *(f'{name} = {{column = "{name}"}}' for name in VOLUMES), ""]
    for name in (name for name in labels if name not in VOLUMES):
        lines += [f"[targets.{name}]", f'column = "{name}"']
        if name == "sex":
            lines += ['codes = {F = "female", M = "male"}']
        lines += [""]
    device = f"[device]\nthreads = {threads}\n" if threads else _DEVICE
    return "\n".join([*lines, device, _SITE_FILE_END])


_DEVICE: Final = """\
# [device]
# kind = "auto"  # or "cpu", "cuda"
# threads = 0    # 0 takes the machine's cores
"""
_SITE_FILE_END: Final = """\
[policy]
minimum_support = 4   # fewest participants behind any number that leaves; for real people 10
# minimum_cohort = 10   # fewest usable participants to take part at all
# orders = ["census", "overlap", "train", "finetune", "evaluate"]
"""
