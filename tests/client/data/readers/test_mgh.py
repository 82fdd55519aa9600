"""FreeSurfer's images are read as NIfTI files are, within the same limits."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from client.data.reader import Source
from client.data.readers.brain_masks import read_header
from client.data.readers.nifti import read_voxels
from client.data.readers.t1w import T1wReader
from common.errors import ScanError
from common.kinds.t1w import T1w
from tests.client.data.anatomy.heads import moved_brain
from tests.client.data.readers.test_brain_masks import found_in, told, touched

STUDY = T1w.Study(kind="t1w", shape=(24, 28, 24), spacing_mm=8.0)


def written(path: Path, dtype: Any = np.float32) -> Path:
    voxels, affine = moved_brain()
    path.parent.mkdir(parents=True, exist_ok=True)
    image: Any = nibabel.MGHImage if path.suffix in (".mgz", ".mgh") else nibabel.Nifti1Image
    nibabel.save(image(voxels.astype(dtype), affine), path)
    return path


def prepared(path: Path) -> Any:
    payload = {"path": str(path), "unsure": False}
    source = Source(participant="sub-01", scan=path.name, stamp="", row={}, payload=payload)
    return T1wReader.prepare(STUDY, source).samples


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_the_same_voxels_are_the_same_sample(tmp_path: Path, name: str, dtype: Any) -> None:
    """Big-endian, and placed by direction cosines: bit for bit what NIfTI gives."""
    plain = prepared(written(tmp_path / "a.nii", dtype))
    np.testing.assert_array_equal(prepared(written(tmp_path / name, dtype)), plain)


def test_voxels_are_those_that_nibabel_reads(tmp_path: Path) -> None:
    """The reference implementation as oracle."""
    path = written(tmp_path / "a.mgz")
    reference: Any = nibabel.load(path)
    np.testing.assert_array_equal(read_voxels(read_header(path)), reference.get_fdata())
    np.testing.assert_allclose(read_header(path).affine, reference.affine, atol=1e-4)


def patched(path: Path, offset: int, form: str, *values: Any) -> Path:
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)))
    return path


@pytest.mark.parametrize(
    ("offset", "form", "values", "problem"),
    [
        (0, ">i", (7,), "no FreeSurfer image"),
        (4, ">3i", (10_000, 10_000, 10_000), "1,000,000,000,000 voxels"),
        (4, ">3i", (900, 500, 500), "cannot hold"),
        (4, ">i", (-96,), "at least one|no image"),
        (16, ">i", (3,), "a series"),
        (20, ">i", (99,), "no image has"),
        (30, ">3f", (0.0, 2.0, 2.0), "voxels are|no image"),
        (30, ">3f", (float("nan"), 2.0, 2.0), "not finite|no image|voxels are"),
        (30, ">3f", (0.002, 0.002, 0.002), "they would fit metres"),
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(
    tmp_path: Path, offset: int, form: str, values: tuple[Any, ...], problem: str
) -> None:
    """The same limits as for NIfTI: a hostile or broken header ends one scan."""
    path = patched(written(tmp_path / "a.mgz", np.uint8), offset, form, *values)
    with pytest.raises(ScanError, match=problem):
        prepared(path)


def test_an_image_without_a_place_is_told_and_may_be_left_out(tmp_path: Path) -> None:
    """goodRASFlag 0: FreeSurfer guesses coronal, and so would we."""
    path = patched(written(tmp_path / "a.mgz"), 28, ">h", 0)
    assert "goodRASFlag is 0" in read_header(path).notes[0]
    with pytest.raises(ScanError, match="unsure_orientation"):
        prepared(path)


@pytest.mark.parametrize("content", [b"", b"hello\n" * 500, gzip.compress(b"\0" * 5000)])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, text, zeros in gzip."""
    path = tmp_path / "a.mgz"
    path.write_bytes(content)
    with pytest.raises(ScanError):
        prepared(path)


def test_a_cut_or_damaged_file_is_refused(tmp_path: Path) -> None:
    """An interrupted copy, and a flipped bit that only the checksum tells."""
    path = written(tmp_path / "a.mgz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScanError, match="cut off"):
        prepared(path)
    path.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    with pytest.raises(ScanError, match="damaged"):
        prepared(path)


# --- finding ------------------------------------------------------------------------------------


def found(root: Path, **keys: Any) -> Any:
    (root / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")
    site = T1w.Site(kind="t1w", root=root.name, **keys)
    return T1wReader.find(STUDY, site, root.parent, frozenset())


def test_subjects_of_freesurfer_and_fastsurfer_are_people_and_visits(tmp_path: Path) -> None:
    """sub-02_ses-b is a visit of sub-02, not a third person; the image is chosen by data.suffix."""
    names = ("sub-01/mri/T1.mgz", "sub-02_ses-b/mri/T1.mgz", "sub-02/ses-c/mri/T1.mgz")
    root = touched(tmp_path / "d", *(f"fs/{n}" for n in names), "fs/sub-01/mri/aseg.mgz")
    sources = found(root, derivative="fs", suffix="T1").sources
    assert [(s.participant, s.scan) for s in sources] == [
        ("sub-01", names[0]), ("sub-02", names[2]), ("sub-02", names[1]),
    ]  # fmt: skip
    problem = told(found(root, derivative="fs"))["data.suffix"]
    assert "holds FreeSurfer subjects, none with mri/T1w.mgz" in problem


def test_a_subject_that_is_no_person_is_left_out(tmp_path: Path) -> None:
    """A longitudinal template is of all visits together."""
    root = touched(tmp_path / "d", "fs/sub-01_ses-1.long.sub-01/mri/T1.mgz", "fs/sub-02/mri/T1.mgz")
    got = found(root, derivative="fs", suffix="T1")
    assert [source.participant for source in got.sources] == ["sub-02"]
    assert "rename that folder" in told(got)["sub-01_ses-1.long.sub-01/mri/T1.mgz"]


def test_of_one_scan_in_both_formats_nifti_is_used(tmp_path: Path) -> None:
    """As it was before .mgz was read; two images of a scan are one scan."""
    root = touched(tmp_path / "d", "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.mgz",
                   "sub-02/anat/sub-02_T1w.mgz")  # fmt: skip
    got = found(root)
    assert [source.scan.rpartition("/")[2] for source in got.sources] == [
        "sub-01_T1w.nii.gz", "sub-02_T1w.mgz",
    ]  # fmt: skip
    assert "as NIfTI, too" in told(got)["sub-01/anat/sub-01_T1w.mgz"]


def test_a_subject_serves_as_scan_and_mask(tmp_path: Path) -> None:
    """FastSurfer's orig.mgz and mask.mgz lie in one folder."""
    root = touched(tmp_path / "d", "fs/sub-01/mri/orig.mgz", "fs/sub-01/mri/mask.mgz")
    (source,) = found_in(root, masks="fs", derivative="fs", suffix="orig").sources
    assert source.payload["mask"] == str(root / "fs/sub-01/mri/mask.mgz")
