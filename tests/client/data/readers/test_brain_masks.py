"""A mask is found by its program's name for it, fits its scan, or the scan is left out by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from client.data.reader import Found
from client.data.readers.brain_masks import read_mask
from client.data.readers.t1w import T1wReader
from common.errors import DataError, ScanError
from common.kinds.t1w import T1w
from tests.client.data.anatomy.heads import FIELD, moved_brain

STUDY = T1w.Study(kind="t1w", shape=(24, 28, 24), spacing_mm=8.0, brain="derivative")
ONE = "sub-01/anat/sub-01_T1w.nii.gz"
TWO = "sub-02/ses-b/anat/sub-02_ses-b_run-1_T1w.nii.gz"


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def found_in(root: Path, masks: str = "masks", **keys: Any) -> Found:
    (root / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")
    (root / "masks").mkdir(exist_ok=True)
    site = T1w.Site(kind="t1w", root=root.name, masks=masks, **keys)
    return T1wReader.find(STUDY, site, root.parent, frozenset())


def told(found: Found) -> dict[str, str]:
    return {finding.what: finding.problem for finding in found.findings}


@pytest.mark.parametrize(
    "names",
    [
        ("sub-01/anat/sub-01_desc-brain_mask.nii.gz",
         "sub-02/ses-b/anat/sub-02_ses-b_run-1_desc-brain_mask.nii.gz"),
        ("sub-01/mri/mask.mgz", "sub-02_ses-b/mri/mask.mgz"),
        ("sub-01/mri/brainmask.mgz", "sub-02/ses-b/mri/brainmask.mgz"),
        ("sub-01_T1w_bet_mask.nii.gz", "sub-02_ses-b_run-1_T1w_bet_mask.nii.gz"),
        ("sub-01_T1w_mask.nii.gz", "sub-02_ses-b_run-1_T1w_mask.nii"),
        ("sub-01/anat/sub-01_T1w_synthstrip_mask.nii.gz",
         "sub-02/ses-b/anat/sub-02_ses-b_run-1_desc-synthstrip_mask.nii.gz"),
    ],
    ids=["fMRIPrep", "FastSurfer", "FreeSurfer", "HD-BET", "HD-BET 1", "SynthStrip"],
)  # fmt: skip
def test_masks_are_found_by_the_names_that_programs_give_them(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    """Nobody should rename what a program wrote."""
    root = touched(tmp_path / "d", ONE, TWO, *(f"masks/{name}" for name in names))
    found = found_in(root)
    assert [source.payload["mask"] for source in found.sources] == [
        str(root / "masks" / name) for name in names
    ]
    assert told(found)["brain masks"] == "2 of 2 scans have one in masks"


def test_masks_may_lie_beside_the_scans(tmp_path: Path) -> None:
    """Where HD-BET writes unless it is told otherwise; a mask is never taken for a scan."""
    root = touched(tmp_path / "d", ONE, "sub-01/anat/sub-01_T1w_bet_mask.nii.gz")
    assert [source.scan for source in found_in(root, masks=".").sources] == [ONE]


def test_a_scan_without_a_mask_is_left_out_by_name(tmp_path: Path) -> None:
    """Never trained on with its skull while the others have none."""
    root = touched(tmp_path / "d", ONE, TWO, "masks/sub-01/mri/mask.mgz")
    found = found_in(root)
    assert [source.scan for source in found.sources] == [ONE]
    assert told(found)[TWO] == "has no brain mask in masks"
    assert told(found)["brain masks"] == "1 of 2 scans have one in masks"


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("sub-01_T1w_mask.nii.gz", "sub-01/anat/sub-01_desc-brain_mask.nii.gz"), "has several"),
        (("sub-01/anat/sub-01_space-MNI152NLin6Asym_desc-brain_mask.nii.gz",), "has no brain mask"),
        (("sub-01/anat/sub-01_desc-lesion_mask.nii.gz",), "has no brain mask"),
        (("sub-01/ses-a/mri/mask.mgz",), "has no brain mask"),
        (("sub-02/mri/mask.mgz",), "has no brain mask"),
    ],
    ids=["two programs", "another space", "a lesion", "another visit", "another person"],
)
def test_what_is_not_clearly_a_scans_mask_is_not_used(
    tmp_path: Path, names: tuple[str, ...], problem: str
) -> None:
    """A mask in another space, or of something else, would cut the brain and say nothing."""
    root = touched(tmp_path / "d", ONE, *(f"masks/{name}" for name in names))
    found = found_in(root)
    assert not found.sources
    assert problem in told(found)[ONE]
    assert any(f.error and f.what == "brain masks" for f in found.findings)


def test_two_scans_never_share_a_mask(tmp_path: Path) -> None:
    """FreeSurfer averages the runs of a visit: its mask fits one of them at most."""
    other = "sub-01/anat/sub-01_run-2_T1w.nii.gz"
    root = touched(tmp_path / "d", ONE, other, "masks/sub-01/mri/mask.mgz")
    found = found_in(root)
    assert not found.sources
    assert "shares the brain mask mask.mgz" in told(found)[ONE]
    assert "shares the brain mask mask.mgz" in told(found)[other]


def test_a_changed_mask_prepares_anew_and_a_link_elsewhere_is_not_followed(tmp_path: Path) -> None:
    """What a sample depends on is part of its stamp; links may not lead out, as with scans."""
    root = touched(tmp_path / "d", ONE, "masks/sub-01/mri/mask.mgz")
    before = found_in(root).sources[0].stamp
    (root / "masks/sub-01/mri/mask.mgz").write_bytes(b"another")
    assert found_in(root).sources[0].stamp != before
    (tmp_path / "elsewhere.mgz").write_bytes(b"x")
    (root / "masks/sub-01/mri/mask.mgz").unlink()
    (root / "masks/sub-01/mri/mask.mgz").symlink_to(tmp_path / "elsewhere.mgz")
    assert "is a link out of the data folder" in told(found_in(root))[ONE]


def test_a_study_of_masks_needs_a_folder_of_masks(tmp_path: Path) -> None:
    """A site that never said where they are would seem to have no scans."""
    root = touched(tmp_path / "d", ONE)
    with pytest.raises(DataError, match=r"data\.masks names no folder"):
        found_in(root, masks="")
    with pytest.raises(DataError, match="is no folder"):
        found_in(root, masks="nowhere")


def written(path: Path, voxels: Any, affine: Any = FIELD) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda brain: np.zeros_like(brain, np.uint8), "all its voxels are 0"),
        (lambda brain: np.ones_like(brain, np.uint8), "all its voxels are 1"),
        (lambda brain: np.where(np.indices(brain.shape)[0] < 90, 1, 0).astype(np.uint8), "of it all"),
        (lambda brain: np.where(np.indices(brain.shape).sum(0) < 20, 1, 0).astype(np.uint8), "12 ml"),
        (lambda brain: np.where(brain, -3.0, 4.0).astype(np.float32), "negative numbers"),
    ],
    ids=["empty", "all true", "nearly all", "a speck", "distances"],
)  # fmt: skip
def test_what_is_no_mask_is_refused_by_name(tmp_path: Path, make: Any, problem: str) -> None:
    """A program that failed leaves an empty mask, or everything."""
    path = written(tmp_path / "sub-01_mask.nii.gz", make(moved_brain()[0] > 20))
    with pytest.raises(ScanError, match=rf"its brain mask sub-01_mask\.nii\.gz: .*{problem}"):
        read_mask(path)


@pytest.mark.parametrize("kind", ["binary", "255", "probability", "stripped"])
def test_masks_are_read_in_every_way_that_programs_write_them(tmp_path: Path, kind: str) -> None:
    """FreeSurfer's brainmask is an image without skull; others write 1, 255 or a probability."""
    image = moved_brain()[0]
    brain = image > 0.5
    voxels = {
        "binary": brain.astype(np.uint8),
        "255": brain.astype(np.uint8) * 255,
        "probability": np.where(brain, 0.9, 0.2).astype(np.float32),
        "stripped": np.where(brain, image, 0).astype(np.float32),
    }[kind]
    mask, affine = read_mask(written(tmp_path / "m.nii", voxels))
    np.testing.assert_array_equal(mask, brain)
    np.testing.assert_allclose(affine, FIELD)
