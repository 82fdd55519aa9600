"""Which scans a BIDS folder holds, and of whom.

Names are listed and taken apart here: `BIDSLayout(validate=False)` needs 2.7 s for 200 scans in a
data set of 8,200 files (2 cores, pybids 0.22), because it indexes every file; this needs 0.01 s.
What the operating system refuses is a finding about that folder or scan: `Path.glob`, `is_file` and
`exists` pass over some refusals in silence and raise others.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.data.finding import Finding, Findings
from client.data.identity import ambiguous
from client.data.readers.links import NOWHERE, homes_of, stamp_of
from client.data.tables import nearest
from common.errors import DataError, reason
from common.printable import name_as_text

_FREESURFER: Final = (".mgz", ".mgh")
IMAGES: Final = (".nii.gz", ".nii", *_FREESURFER)
_SUBJECTS_FOLDER: Final = "mri"  # of FreeSurfer, below a subject
VERSIONS: Final = ("space", "cohort", "res", "den", "desc")  # entities of one scan's derivatives
_SUBJECT: Final = re.compile(r"(sub-[0-9A-Za-z+]+)(?:_(ses-[0-9A-Za-z+]+))?")
_ALMOST_A_PERSON: Final = re.compile(r"sub[_ .]?\w*\d\w*|sub-.*", re.IGNORECASE)
_SURFACES: Final = (".gii", ".dtseries.nii")  # another version of a run, which volumes stand for
_REFERENCE: Final = "boldref"  # one volume that runs are laid on
_OTHER_FORMATS: Final = (".hdr", ".img", ".mnc", ".nrrd", ".dcm")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFile:
    """One image file: whose, its name below the root (stable, for people), and where it is.

    `stamp` changes when its content may have.
    """

    participant: str
    session: str
    name: str
    path: Path
    entities: Mapping[str, str]
    stamp: str = ""


@dataclass(slots=True)
class Scans:
    """Image files by participant and name; what was wrong, and of whom something was left out."""

    modality: str = "anat"  # folder that the images lie in
    files: list[ScanFile] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    homes: tuple[Path, ...] = ()  # folders that links may lead to
    findings: Findings = field(default_factory=Findings)

    def refuse(self, parts: tuple[str, ...], problem: str) -> None:
        """Leave out the file or folder with these names below the root."""
        self.refused.update(name_as_text(part) for part in parts[:1])
        what = name_as_text("/".join(parts))
        self.findings.append(Finding(what=what, problem=problem, left_out=True))


def entities(stem: str) -> dict[str, str]:
    """The key-value pairs of a BIDS file name without its ending.

    >>> entities("sub-01_ses-2_run-1_T1w")
    {'sub': '01', 'ses': '2', 'run': '1'}
    """
    return dict(part.split("-", 1) for part in stem.split("_")[:-1] if "-" in part)


def find_scans(
    root: Path,
    folder: str,
    suffix: str,
    wanted: Mapping[str, str],
    links: tuple[Path, ...] = (),
    modality: str = "anat",
) -> Scans:
    """Every `*_suffix.nii[.gz]` in the modality's folders below root/folder, by person and name.

    Of FreeSurfer's and FastSurfer's subjects (sub-1 or sub-1_ses-2) it is mri/suffix.mgz.
    `links` are folders that a link may lead to, beside `root`. Files that are named almost so are
    findings: nobody puts them there to be passed over.

    Raises
    ------
    DataError
        If the folder does not exist or cannot be listed.
    """
    base, scans = root / folder, Scans(modality=modality)
    images = sorted(_images(base, scans))
    scans.homes = homes_of(root, links, scans.findings)
    others: dict[str, dict[str, None]] = {key: {} for key in wanted}
    for parts in images:
        stem, ending = stem_of(parts[-1])
        subject = parts[-2] == _SUBJECTS_FOLDER
        if not _is_meant(parts, suffix, scans):
            continue
        found = _of_subject(parts) if subject else entities(name_as_text(stem))
        if any(found.get(key, "") != value for key, value in wanted.items()):
            for key, seen in others.items():
                seen[found.get(key, "")] = None
            continue
        path = base.joinpath(*parts)
        problem = _no_subject(found) if subject else _misnamed(parts, stem, ending, found)
        problem = problem or _as_nifti(parts, images)
        stamp, problem = ("", problem) if problem else stamp_of(path, scans.homes)
        if problem:
            scans.refuse(parts, problem)
            continue
        scans.files.append(
            ScanFile(
                participant=f"sub-{found['sub']}",
                session=f"ses-{found['ses']}" if "ses" in found else "",
                name=name_as_text("/".join(parts)),
                path=path,
                entities=found,
                stamp=stamp,
            )
        )
    if not scans.files and any(parts[-2] == _SUBJECTS_FOLDER for parts in images):
        problem = (
            f"{base} holds FreeSurfer subjects, none with mri/{suffix}.mgz; name one of their "
            'images, such as "T1" or "orig"'
        )
        scans.findings.append(Finding(what="data.suffix", problem=problem))
    if not scans.files and any(others.values()):
        _filtered_out(wanted, others, scans)
    _refuse_doubtful(scans)
    return scans


def one_version(
    scans: Scans, prefers: Callable[[str], bool], kinds: tuple[str, ...] = VERSIONS
) -> None:
    """Keep one of several derivatives of the same scan: they are one scan and not two.

    `kinds` are the entities of which two values are versions of one scan.

    `prefers` says whether the study can use images of a space ("" for as acquired). Where it leaves
    more than one, or none, nobody has said which is meant, and all of them are left out.
    """
    versions: dict[tuple[str, ...], list[ScanFile]] = {}
    for scan in scans.files:
        own = sorted(f"{key}-{v}" for key, v in scan.entities.items() if key not in kinds)
        versions.setdefault((scan.participant, *own), []).append(scan)
    several = [group for group in versions.values() if len(group) > 1]
    if not several:
        return
    gone: set[str] = set()
    for group in several:
        kept = [scan for scan in group if prefers(scan.entities.get("space", ""))]
        clear = len(kept) == 1
        gone |= {scan.name for scan in group if not clear or scan is not kept[0]}
        if not clear:
            names = " and ".join(scan.path.name for scan in group[:3])
            problem = f"is there in several versions ({names}); name one by data.entities"
            scans.refuse(tuple(group[0].name.split("/")), problem)
    scans.files = [scan for scan in scans.files if scan.name not in gone]
    used = [scan.name for group in several for scan in group if scan.name not in gone]
    if used:
        problem = (
            f"{len(several)} scans are there in several versions; {used[0]} and its like are "
            f"used; choose others by data.entities (space = '' is: as acquired)"
        )
        scans.findings.append(Finding(what="versions", problem=problem))


def _is_meant(parts: tuple[str, ...], suffix: str, scans: Scans) -> bool:
    """Whether a file is a scan by its name; one that is named almost so is a finding."""
    stem, ending = stem_of(parts[-1])
    if parts[-1].endswith(_SURFACES) or stem.endswith(f"_{_REFERENCE}"):
        return False
    if parts[-2] == _SUBJECTS_FOLDER:
        return stem == suffix and ending in IMAGES
    if ending != ".json" and stem.endswith(f"_{suffix}"):
        return True
    if ending in IMAGES and suffix.casefold() in stem.rpartition("_")[2].casefold():
        scans.refuse(parts, f"is not named sub-LABEL_..._{suffix}{ending}; rename it")
    return False


def _filtered_out(
    wanted: Mapping[str, str], others: Mapping[str, Mapping[str, None]], scans: Scans
) -> None:
    for key, value in wanted.items():
        if value not in others[key]:
            problem = f'no scan has {key} = "{value}"; {nearest(value, list(others[key]))}'
            scans.findings.append(Finding(what="data.entities", problem=problem, error=True))


def _refuse_doubtful(scans: Scans) -> None:
    """Leave out people whose names could be two spellings of one."""
    doubtful = ambiguous(dict.fromkeys(scan.participant for scan in scans.files))
    for name, other in doubtful.items():
        scans.refuse((name,), f"may be {other} in another spelling; give each person one")
    scans.files = [scan for scan in scans.files if scan.participant not in doubtful]


def stem_of(name: str) -> tuple[str, str]:
    """A file's name without its ending, and that; dots inside a name are part of it."""
    for ending in IMAGES:
        if name.endswith(ending):
            return name.removesuffix(ending), ending
    stem, dot, ending = name.partition(".")
    return stem, dot + ending


def _images(base: Path, scans: Scans) -> Iterator[tuple[str, ...]]:
    """Names below `base` of whatever lies in a folder of the modality."""
    try:
        people = [entry.name for entry in base.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        message = f"{base} does not exist or is not a folder; a BIDS data set is needed"
        raise DataError(message) from None
    except OSError as error:
        raise DataError(f"{base} cannot be listed: {reason(error)}") from None
    for who in people:
        if not who.startswith("sub-"):
            if _ALMOST_A_PERSON.fullmatch(who) and (base / who).is_dir():
                scans.refuse((who,), "is not named sub-LABEL; rename it")
            continue
        for place in _folders_of_images(base, who, scans):
            for image in _names(base, place, scans):
                yield (*place, image)


def _folders_of_images(base: Path, who: str, scans: Scans) -> Iterator[tuple[str, ...]]:
    """Where images of one person, or of one subject of FreeSurfer's, lie."""
    for name in _names(base, (who,), scans):
        if name == scans.modality or (name == _SUBJECTS_FOLDER and scans.modality == "anat"):
            yield who, name
        elif name.startswith("ses-"):
            below = _names(base, (who, name), scans)
            _tell_of_almost(below, (who, name), scans)
            yield who, name, scans.modality
            if _SUBJECTS_FOLDER in below and scans.modality == "anat":
                yield who, name, _SUBJECTS_FOLDER
        else:
            _tell_of_almost([name], (who,), scans)


def _tell_of_almost(names: Iterable[str], parts: tuple[str, ...], scans: Scans) -> None:
    """Folders that somebody meant to be the modality's or `ses-LABEL`."""
    for name in names:
        folded = name.casefold()
        if folded == scans.modality and name != scans.modality:
            scans.refuse((*parts, name), f"is not named {scans.modality}; rename it")
        elif len(parts) == 1 and re.fullmatch(r"ses(sion)?[_ -]?\w*\d\w*", folded):
            scans.refuse((*parts, name), "is not named ses-LABEL; rename it")


def _names(base: Path, parts: tuple[str, ...], scans: Scans) -> list[str]:
    """What a folder holds; nothing, and a finding, if it cannot be listed."""
    path = base.joinpath(*parts)
    try:
        return [entry.name for entry in path.iterdir()]
    except NotADirectoryError:
        return []
    except FileNotFoundError:
        if path.is_symlink():
            scans.refuse(parts, NOWHERE)
        return []
    except OSError as error:
        scans.refuse(parts, f"cannot be listed: {reason(error)}")
        return []


def _of_subject(parts: tuple[str, ...]) -> dict[str, str]:
    """Whose a FreeSurfer subject is, by its folders; nothing where these do not tell."""
    found = _SUBJECT.fullmatch("_".join(name_as_text(part) for part in parts[:-2]))
    if found is None:
        return {}
    return dict(part.split("-", 1) for part in found.groups() if part)


def _no_subject(found: Mapping[str, str]) -> str:
    return "" if found else "is of no sub-LABEL or sub-LABEL_ses-LABEL; rename that folder"


def _as_nifti(parts: tuple[str, ...], images: Sequence[tuple[str, ...]]) -> str:
    """Why an image of FreeSurfer's that lies beside the same in NIfTI is not used."""
    stem, ending = stem_of(parts[-1])
    for other in (".nii", ".nii.gz") if ending in _FREESURFER else ():
        beside = (*parts[:-1], stem + other)
        place = bisect_left(images, beside)
        if images[place : place + 1] == [beside]:
            return "is there as NIfTI, too, which is used"
    return ""


def _misnamed(parts: tuple[str, ...], stem: str, ending: str, found: Mapping[str, str]) -> str:
    if "." in stem:
        return f"has a dot in its name, which BIDS allows before {ending} alone; rename it"
    if ending not in IMAGES:
        known = ending.lower().removesuffix(".gz") in _OTHER_FORMATS
        return f"is {ending or 'no image'}; " + (
            "convert it to NIfTI (.nii.gz)" if known else "a NIfTI file (.nii.gz) is needed"
        )
    folders = [name_as_text(part) for part in parts[:-1] if part not in ("anat", "func")]
    own = [f"sub-{found.get('sub')}", *([f"ses-{found['ses']}"] if "ses" in found else [])]
    if folders != own:
        return f"is named {'_'.join(own)} but lies in {'/'.join(folders)}"
    return ""
