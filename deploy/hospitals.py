"""Synthetic hospitals: people, scanners and missing labels, written to disk as BIDS.

Every draw of a hospital comes from its seed and its name, so adding one changes no other. The
images are skull-stripped, in MNI space, and of no real person.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from common.errors import FolderError, SettingError, StorageError
from deploy.anatomy import (
    LOG_SCALE,
    MODES,
    Anatomy,
    Floats,
    Head,
    Modes,
    Scanner,
    Volume,
    build_anatomy,
    render,
)

Flags = npt.NDArray[np.bool_]

MARKER: Final = ".callosum-hospital.json"
_SITE_FOLDER: Final = ".callosum"  # what a site keeps beside its file is not ours to judge
_INTENSITY: Final = 1000  # scanner units of a rendered intensity of 1
_AGES: Final = (18.0, 95.0)
_WHOLLY_MISSING: Final = {  # probability that a site never asked
    "handedness": 0.3,
    "bmi": 0.2,
    "fluid_intelligence": 0.4,
    "neuroticism": 0.4,
}
_SPORADICALLY_MISSING: Final = {  # probability that one person's label is not known
    "age": 0.01,
    "sex": 0.01,
    "handedness": 0.05,
    "bmi": 0.05,
    "fluid_intelligence": 0.08,
    "neuroticism": 0.08,
}
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
}
TARGETS: Final = tuple(_COLUMNS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hospital:
    """What fixes one hospital's data, bit by bit.

    Attributes
    ----------
    strength
        Spread of the scanner effects: 0 none, 1 default, 2 hard.
    pool
        Share of the participants who belong to a clinical sample: aged about 72, diagnosis known.
    prevalence
        Share of patients in that sample.
    severity
        Median severity of the patients, 1 for a clear disease, 0.2 for a faint one.
    repeats
        Share of the participants with a second scan.
    missing
        Targets that the site lacks wholly; None draws them.
    age_mean, age_sd
        Years, of people outside the clinical sample; None draws them.
    shared_modes
        False removes all that the disease shares with the phenotypes (the negative control).
    shuffle_labels
        True gives each participant another one's labels.
    """

    name: str
    participants: int
    seed: int = 0
    role: Literal["train", "heldout"] = "train"
    strength: float = 1.0
    pool: float = 0.0
    prevalence: float = 0.5
    severity: float = 1.0
    repeats: float = 0.2
    missing: tuple[str, ...] | None = None
    age_mean: float | None = None
    age_sd: float | None = None
    shared_modes: bool = True
    shuffle_labels: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class People:
    """The participants of one hospital, as they are, not as the hospital knows them.

    All arrays have N participants first. `log_scales` (N, R) and `texture` (N,) are what an oracle
    would see; `log_volumes` (N, 2, R) and `log_size` (N, 2) are measured, once a session.
    """

    age: Floats
    male: Flags
    left_handed: Flags
    bmi: Floats
    fluid_intelligence: Floats
    neuroticism: Floats
    in_pool: Flags
    diseased: Flags
    log_scales: Floats
    size: Floats
    thinning: Floats
    texture: Floats
    log_volumes: Floats
    log_size: Floats
    scans: npt.NDArray[np.int64]

    def head(self, person: int) -> Head:
        """The anatomy that all scans of one participant show."""
        return Head(
            log_scales=self.log_scales[person],
            size=float(self.size[person]),
            age_z=float(_centred_age(self.age[person])),
            thinning=float(self.thinning[person]),
            texture=float(self.texture[person]),
        )


def draw_scanner(hospital: Hospital) -> Scanner:
    """Draw the site's scanner; at strength 0 all sites have the same one."""
    random, strength = _generator(hospital, "scanner"), hospital.strength
    return Scanner(
        gamma=float(np.exp(random.normal() * 0.12 * strength)),
        grey_shift=random.normal() * 0.05 * strength,
        white_shift=random.normal() * 0.05 * strength,
        bias=random.normal(size=6) * 0.10 * strength,
        blur_voxels=abs(random.normal()) * 0.45 * strength,
        noise=0.02 + abs(random.normal()) * 0.02 * strength,
        zoom=random.normal() * 0.02 * strength,
    )


def draw_people(hospital: Hospital, modes: Modes) -> People:
    """Draw phenotypes, diagnoses and anatomy of the hospital's participants."""
    random, n = _generator(hospital, "people"), hospital.participants
    in_pool = _exactly(hospital.pool, n, random)
    age = _draw_ages(hospital, in_pool, random)
    z = _centred_age(age)
    male = random.random(n) < random.uniform(0.35, 0.65)
    left_handed = random.random(n) < 0.1
    bmi = np.clip(26 + 1.2 * z + 0.6 * male + 4 * random.normal(size=n), 14, 60)
    fluid_intelligence = -0.45 * z + random.normal(size=n)
    neuroticism = -0.4 * male + random.normal(size=n)
    diseased = _draw_patients(hospital, in_pool, age, random)
    severity = diseased * hospital.severity * np.exp(0.45 * random.normal(size=n))
    direction = modes.disease if hospital.shared_modes else modes.disease_apart
    log_scales = LOG_SCALE * (
        np.outer(z + 0.25 * np.maximum(z, 0) ** 2, modes.age)
        + 0.95 * np.outer(male - 0.5, modes.sex)
        + 0.35 * np.outer((bmi - 26) / 4, modes.bmi)
        + 0.12 * np.outer(fluid_intelligence, modes.fluid_intelligence)
        + 0.12 * np.outer(neuroticism, modes.neuroticism)
        + 0.8 * np.outer(left_handed, modes.handedness)
        + np.outer(severity, direction)
        + 0.28 * np.einsum("nj,rj->nr", random.normal(size=(n, MODES)), modes.dictionary)
        + 0.6 * random.normal(size=(n, len(modes.age)))
    )
    size = 0.04 * (male - 0.5) + 0.03 * random.normal(size=n)
    # Age thins the cortex too: one more link between disease and phenotypes, so it goes as well.
    thins = 0.05 * severity if hospital.shared_modes else 0.0
    thinning = np.clip(0.10 + 0.05 * z + thins + 0.02 * random.normal(size=n), 0, 0.5)
    measured = 3 * log_scales[:, None] + 0.15 * random.normal(size=(n, 2, len(modes.age)))
    return People(
        age=age,
        male=male,
        left_handed=left_handed,
        bmi=bmi,
        fluid_intelligence=fluid_intelligence,
        neuroticism=neuroticism,
        in_pool=in_pool,
        diseased=diseased,
        log_scales=log_scales,
        size=size,
        thinning=thinning,
        texture=np.asarray(0.10 * severity),
        log_volumes=measured,
        log_size=3 * size[:, None] + 0.01 * random.normal(size=(n, 2)),
        scans=1 + _exactly(hospital.repeats, n, random).astype(np.int64),
    )


def scan(
    anatomy: Anatomy, hospital: Hospital, people: People, person: int, session: int = 0
) -> Volume:
    """Image one participant once: (X, Y, Z) float32, whatever else has been imaged before."""
    random = _generator(hospital, "scan", person, session)
    return render(anatomy, people.head(person), draw_scanner(hospital), random)


def draw_labels(hospital: Hospital, people: People) -> dict[str, list[str]]:
    """What the hospital's table says: one list of N entries a column, `n/a` where not known."""
    random, n = _generator(hospital, "labels"), hospital.participants
    missing = {name for name, chance in _WHOLLY_MISSING.items() if random.random() < chance}
    if hospital.missing is not None:
        missing = set(hospital.missing)
    if not hospital.pool:
        missing.add("diagnosis")
    unknown = {name: random.random(n) < p for name, p in _SPORADICALLY_MISSING.items()}
    unknown["diagnosis"] = ~people.in_pool
    whose = random.permutation(n) if hospital.shuffle_labels else np.arange(n)
    entries: dict[str, npt.ArrayLike] = {
        "age": [f"{age:.1f}" for age in people.age],
        "sex": np.where(people.male, "M", "F"),
        "handedness": np.where(people.left_handed, "left", "right"),
        "bmi": [f"{bmi:.1f}" for bmi in people.bmi],
        "fluid_intelligence": [f"{score:.2f}" for score in people.fluid_intelligence],
        "neuroticism": [f"{score:.2f}" for score in people.neuroticism],
        "diagnosis": np.where(people.diseased, "ad", "control"),
    }
    return {
        name: [str(entry) for entry in np.where(unknown[name], "n/a", entries[name])[whose]]
        for name in TARGETS
        if name not in missing
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
    pool: float = 0.5,
    shared_modes: bool = True,
    shuffle_labels: bool = False,
    advance: Callable[[], None] | None = None,
) -> list[Path]:
    """Write one BIDS folder and one site file a hospital; finish what an earlier call began.

    Parameters
    ----------
    names
        All hospitals, in the order of the result; `heldout` names some of them.
    pool
        Share of each hospital's participants in its clinical sample (diagnosis known).
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
    _check(names, heldout, participants, strength, pool)
    hospitals = [
        Hospital(
            name=name,
            participants=participants,
            seed=seed,
            role="heldout" if name in heldout else "train",
            strength=strength,
            pool=pool,
            shared_modes=shared_modes,
            shuffle_labels=shuffle_labels,
        )
        for name in names
    ]
    anatomy = build_anatomy(spacing_mm)
    complete = {
        one.name: _is_complete(out / one.name, _settings(one, anatomy)) for one in hospitals
    }
    try:
        for hospital in hospitals:
            steps: Iterable[object] = range(participants)
            if not complete[hospital.name]:
                steps = _write(out / hospital.name, hospital, anatomy)
            for _ in steps:
                if advance is not None:
                    advance()
    except OSError as error:
        raise StorageError(f"the hospitals cannot be written to {out}: {error}") from error
    return [out / name / "site.toml" for name in names]


def _check(
    names: Sequence[str], heldout: Sequence[str], participants: int, strength: float, pool: float
) -> None:
    strangers = sorted(set(heldout) - set(names))
    if strangers:
        raise SettingError(f"heldout names {', '.join(strangers)}; each must also be in names")
    if len(set(names)) < len(names):
        raise SettingError(f"names lists a hospital twice: {', '.join(names)}")
    for name in names:
        if not name.isascii() or not name.replace("-", "").isalnum() or name != name.lower():
            raise SettingError(f"{name!r} is not a hospital's name; use a-z, 0-9 and hyphens")
    if participants < 1:
        raise SettingError(f"participants is {participants}; it must be 1 or more")
    if strength < 0:
        raise SettingError(f"strength is {strength}; it must be 0 or more")
    if not 0 <= pool <= 1:
        raise SettingError(f"pool is {pool}; it must be from 0 to 1")


def _settings(hospital: Hospital, anatomy: Anatomy) -> dict[str, object]:
    """All that the hospital's files depend on, as JSON gives it back."""
    settings = {**asdict(hospital), "spacing_mm": anatomy.spacing_mm, "shape": anatomy.shape}
    return dict(json.loads(json.dumps(settings)))


def _is_complete(folder: Path, settings: dict[str, object]) -> bool:
    """Whether nothing is left to write; refuse a folder that is not this hospital's."""
    if not any(path.is_file() for path in folder.rglob("*") if path.suffix != ".partial"):
        return False
    ours = {"bids", "site.toml", MARKER, _SITE_FOLDER}
    strangers = sorted({path.name for path in folder.iterdir()} - ours)
    if strangers:
        raise FolderError(
            f"{folder} holds {strangers[0]}, which is not ours; choose another folder"
        )
    marker, description = folder / MARKER, folder / "bids" / "dataset_description.json"
    for file in (marker, description):
        if file.exists():
            found = _hospital_settings(file)
            if found != settings:
                raise FolderError(f"{folder} holds {_difference(found, settings)}")
            return file == marker
    raise FolderError(f"{folder} holds files but no synthetic hospital; choose another folder")


def _hospital_settings(file: Path) -> object:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("HospitalSettings") if isinstance(content, dict) else None


def _difference(found: object, wanted: dict[str, object]) -> str:
    if not isinstance(found, dict):
        return "another dataset; choose another folder"
    keys = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    there, asked = (", ".join(f"{key} = {s.get(key)}" for key in keys) for s in (found, wanted))
    return f"a hospital with {there}, but {asked} was asked for; choose another folder or delete it"


def _write(folder: Path, hospital: Hospital, anatomy: Anatomy) -> Iterator[None]:
    """Write one hospital, yielding after each participant; its marker comes last."""
    people, bids = draw_people(hospital, anatomy.modes), folder / "bids"
    labels, settings = draw_labels(hospital, people), _settings(hospital, anatomy)
    # First of all, so that what a killed write leaves can be told from somebody's own data.
    _write_json(bids / "dataset_description.json", _description(hospital, "raw", settings))
    _write_text(bids / "README", _README.format(name=hospital.name))
    _write_json(bids / "participants.json", {name: _COLUMNS[name] for name in labels})
    identities = [_identity(person) for person in range(hospital.participants)]
    rows = zip(identities, *labels.values(), strict=True)
    _write_table(bids / "participants.tsv", ["participant_id", *labels], rows)
    _write_regions(bids / "derivatives" / "regions", hospital, anatomy, people)
    for person in range(hospital.participants):
        for session in range(people.scans[person]):
            file = bids / _scan_path(person, session, people)
            if not file.exists():
                _write_scan(file, scan(anatomy, hospital, people, person, session), anatomy.affine)
        yield
    _write_text(folder / "site.toml", _site_file(hospital, labels))
    _write_json(folder / MARKER, {"HospitalSettings": settings})


def _write_regions(folder: Path, hospital: Hospital, anatomy: Anatomy, people: People) -> None:
    description = _description(hospital, "derivative", None)
    _write_json(folder / "dataset_description.json", description)
    names = [*anatomy.regions.names, "tiv"]
    unit = {"Description": "Volume, adjusted for head size", "Units": "mm^3"}
    whole = {"Description": "Total intracranial volume", "Units": "mm^3"}
    _write_json(folder / "regions.json", {**dict.fromkeys(names, unit), "tiv": whole})
    head_mm3 = anatomy.brain.sum() * anatomy.spacing_mm**3
    rows = []
    for person, scans in enumerate(people.scans):
        for session in range(scans):
            parts = anatomy.regions.volumes_mm3 * np.exp(people.log_volumes[person, session])
            total = head_mm3 * np.exp(people.log_size[person, session])
            label = _session(session) if scans > 1 else "n/a"
            rows.append([_identity(person), label, *(f"{v:.1f}" for v in (*parts, total))])
    _write_table(folder / "regions.tsv", ["participant_id", "session", *names], rows)


def _identity(person: int) -> str:
    return f"sub-{person + 1:04d}"


def _session(session: int) -> str:
    return f"ses-{session + 1:02d}"


def _scan_path(person: int, session: int, people: People) -> Path:
    names = [_identity(person)] + ([_session(session)] if people.scans[person] > 1 else [])
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


def _description(
    hospital: Hospital, kind: str, settings: Mapping[str, object] | None
) -> dict[str, object]:
    description: dict[str, object] = {
        "Name": f"Synthetic hospital {hospital.name}",
        "BIDSVersion": "1.9.0",
        "DatasetType": kind,
        "GeneratedBy": [
            {"Name": "callosum hospitals", "Description": "Synthetic data, of no real person"}
        ],
    }
    return description if settings is None else {**description, "HospitalSettings": settings}


_README: Final = """\
Synthetic hospital {name}

No real person was scanned. Heads are the MNI152 template, warped and recoloured by drawn ages,
phenotypes and a disease; each hospital has a drawn scanner of its own. Images are skull-stripped
(0 outside the brain), in MNI space, in arbitrary units. Written by Callosum.
"""


def _site_file(hospital: Hospital, labels: Mapping[str, object]) -> str:
    lines = [
        f'name = "{hospital.name}"',
        f'role = "{hospital.role}"',
        "",
        "[data]",
        'kind = "t1w"',
        'root = "bids"  # relative to this file',
        'regions = "bids/derivatives/regions/regions.tsv"',
        "",
    ]
    for name in labels:
        lines += [f"[targets.{name}]", f'column = "{name}"']
        if name == "sex":
            lines += ['codes = {F = "female", M = "male"}']
        lines += [""]
    return "\n".join([*lines, _SITE_FILE_END])


_SITE_FILE_END: Final = """\
# [device]
# kind = "auto"  # or "cpu", "cuda"
# threads = 0    # 0 takes the machine's cores

# [policy]
# minimum_cohort = 10   # fewest usable participants to take part at all
# minimum_support = 10  # fewest participants behind any number that leaves
# orders = ["census", "train", "finetune", "evaluate"]
"""


def _draw_ages(hospital: Hospital, in_pool: Flags, random: np.random.Generator) -> Floats:
    mean, sd = random.uniform(35, 62), random.uniform(8, 16)
    mean = mean if hospital.age_mean is None else hospital.age_mean
    sd = sd if hospital.age_sd is None else hospital.age_sd
    spread = random.normal(size=len(in_pool))
    return np.clip(np.where(in_pool, 72 + 7 * spread, mean + sd * spread), *_AGES)


def _draw_patients(
    hospital: Hospital, in_pool: Flags, age: Floats, random: np.random.Generator
) -> Flags:
    """Spread the patients evenly over the pool's ages, so that age does not tell them apart."""
    diseased = np.zeros(len(age), dtype=np.bool_)
    members = np.flatnonzero(in_pool)
    members = members[np.argsort(age[members], kind="stable")]
    counted = np.floor(random.random() + hospital.prevalence * np.arange(len(members) + 1))
    diseased[members] = np.diff(counted) > 0
    return diseased


def _exactly(share: float, n: int, random: np.random.Generator) -> Flags:
    """Choose a share of n participants at random, rounded to a whole number of them."""
    return np.asarray(random.permutation(n) < round(share * n))


def _centred_age(age: Floats | np.float64) -> Floats:
    return np.asarray((age - 50) / 18)


def _generator(hospital: Hospital, purpose: str, *numbers: int) -> np.random.Generator:
    """Independent draws for each site, purpose and scan, whatever else is drawn."""
    words = f"{hospital.seed}/{hospital.name}/{purpose}/{'/'.join(map(str, numbers))}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(words.encode()).digest()[:16]))
