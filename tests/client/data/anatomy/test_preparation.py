"""What a study asks for is what its samples are; what it does not ask for is not done."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from client.data.anatomy import grid
from client.data.anatomy.preparation import Scan, prepare_scan
from client.data.anatomy.template import template
from client.data.generation import FIGURES, SAMPLES
from client.data.prepare import prepare
from client.data.reader import Prepared
from client.site import load_site
from common.errors import ScanError, SettingError
from common.kinds.t1w import T1w
from tests.client.data.anatomy.heads import moved_brain, moved_mask, whole_head
from tests.client.data.test_prepare import study_of

MNI = {"kind": "t1w", "shape": (48, 56, 48), "spacing_mm": 4.0, "align": "world"}


def study(**keys: Any) -> T1w.Study:
    return T1w.Study.model_validate({**MNI, **keys})


def scan(image: Any, spacing_mm: float = 4.0) -> Scan:
    return Scan.seen(*image, spacing_mm)


def like(sample: Any) -> float:
    """Correlation with the template on the same grid, inside its brain."""
    mni = template(4.0)
    target = grid.grid_affine((48, 56, 48), 4.0, grid.MNI_CENTRE_MM)
    brain = grid.resampled(mni.brain.astype(np.float32), mni.affine, target, (48, 56, 48)) > 0.5
    wanted = grid.resampled(mni.voxels, mni.affine, target, (48, 56, 48))
    return float(np.corrcoef(sample[0][brain].astype(np.float64), wanted[brain])[0, 1])


@cache
def prepared(how: str, brain: str = "none", head: str = "moved") -> Prepared:
    """Each way to prepare is worked once for all tests: a registration takes seconds."""
    image = scan(moved_brain() if head == "moved" else whole_head())
    return prepare_scan(study(registration=how, brain=brain), image)


def test_a_moved_brain_prepares_to_the_template() -> None:
    """Affine: the sample is the template; unregistered it is not."""
    assert like(prepared("affine").samples) > 0.97
    assert like(prepared("rigid").samples) < 0.9
    assert like(prepared("none").samples) < 0.6


def test_a_rigid_sample_keeps_its_volume_and_an_affine_one_is_scaled() -> None:
    """What atrophy is measured by must not be scaled away without anybody asking for it."""
    rigid, affine, plain = (
        np.count_nonzero(prepared(how).samples) for how in ("rigid", "affine", "none")
    )
    assert rigid == pytest.approx(plain, rel=0.02)
    assert rigid / affine == pytest.approx(0.86 * 0.9 * 0.82, rel=0.05)  # edges of 4 mm


@pytest.mark.parametrize(("how", "scale"), [("rigid", 0.86 * 0.9 * 0.82), ("affine", 1.0)])
def test_the_templates_brain_takes_the_skull_off(how: str, scale: float) -> None:
    """Without a mask of its own a site can still take part in a study of brains."""
    whole = prepared(how, head="whole").samples
    brain = prepared(how, "template", head="whole").samples
    assert np.count_nonzero(whole) > 1.5 * np.count_nonzero(brain)
    ml = template(2.0).brain.sum() * 8 / 1000 * scale
    assert np.count_nonzero(brain) * 64 / 1000 == pytest.approx(ml, rel=0.1)


def test_a_sites_own_mask_is_what_stays_and_what_is_registered_by() -> None:
    """On another grid than the scan's: both headers say where they are."""
    voxels, affine = whole_head()
    brain = moved_mask()
    padded, at = np.pad(brain, 6), affine.copy()
    at[:3, 3] -= 6 * 2.0
    keys = {"registration": "affine", "brain": "derivative"}
    found = prepare_scan(study(**keys), scan((voxels, affine)), (padded, at))
    assert like(found.samples) > 0.9
    assert found.quality["overlap"] > 0.96
    with pytest.raises(ScanError, match="lie in the head; is it this scan's"):
        elsewhere = at.copy()
        elsewhere[:3, 3] += 150
        prepare_scan(study(**keys), scan((voxels, affine)), (padded, elsewhere))


def test_samples_are_the_same_bits_whatever_the_number_of_workers(tmp_path: Path) -> None:
    """A resumed or repeated preparation must be the one that a report was made from."""
    for number in (1, 2, 3):
        path = tmp_path / f"bids/sub-{number}/anat/sub-{number}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        voxels, affine = moved_brain()
        nibabel.save(nibabel.Nifti1Image(voxels + number, affine), path)
    keys = {**MNI, "shape": [48, 56, 48], "registration": "affine", "bias_correction": True}
    made = []
    for workers in (1, 2):
        (tmp_path / "site.toml").write_text(
            f'name = "here"\nrole = "train"\nfolder = "{workers}"\n'
            '[data]\nkind = "t1w"\nroot = "bids"\n'
        )
        site = load_site(tmp_path / "site.toml")
        made.append(prepare(study_of(keys), site, workers=workers))
    one, two = ((folder / name).read_bytes() for folder in made for name in (SAMPLES,))
    assert one == two
    assert len(one) == 3 * 48 * 56 * 48 * 2
    figures = (made[0] / FIGURES).read_text().splitlines()
    assert figures[0].split("\t")[0] == "scan"
    assert "overlap" in figures[0]
    assert len(figures) == 4


def test_figures_are_told_and_nothing_changes_by_them() -> None:
    """They stand beside the samples; unregistered scans have those that need no template."""
    assert set(prepared("none").quality) == {"foreground_ml", "outside_grid", "contrast_to_noise"}
    laid = prepared("affine").quality
    assert {"overlap", "likeness", "translation_mm", "scaling", "joint_variation"} < set(laid)
    assert laid["outside_grid"] < 0.02
    cropped = study(align="centre", shape=(22, 56, 48))
    assert prepare_scan(cropped, scan(moved_brain())).quality["outside_grid"] > 0.1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"registration": "rigid", "align": "centre"}, "align must be"),
        ({"brain": "template"}, "registration must be"),
        ({"registration": "elastic"}, "registration is"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: Any, message: str) -> None:
    """When the study is read, not at the first hospital."""
    with pytest.raises(SettingError, match=message):
        study_of({**MNI, "shape": [48, 56, 48], **keys})
