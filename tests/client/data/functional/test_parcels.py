"""Connectomes of functional runs: what is read by the study's atlas, and what is refused by name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from client.data.reader import Found, Prepared
from client.data.readers.connectome import ConnectomeReader
from common.errors import DataError, ScanError
from common.kinds.connectome import Connectome
from tests.client.data.functional.runs import (
    AFFINE,
    SHAPE,
    TR_S,
    VOLUMES,
    brain,
    save,
    told,
    write_run,
    write_table,
)

RUN = "sub-01_task-rest_space-MNI152NLin6Asym"
NAME = f"sub-01/func/{RUN}_bold.nii.gz"


def regions() -> np.ndarray[Any, Any]:
    """Three cubes, numbered 2, 5 and 9: numbers need not follow each other."""
    labels = np.zeros(SHAPE, dtype=int)
    for number, x in ((2, 2), (5, 5), (9, 8)):
        labels[x : x + 2, 5:8, 4:7] = number
    return labels


def signals(seed: int = 0) -> np.ndarray[Any, Any]:
    """(T, 3): the first two go together, the third by itself; from 0.01 to 0.1 Hz."""
    random = np.random.default_rng(seed)
    t = np.arange(VOLUMES) * TR_S
    own = [
        sum(np.sin(2 * np.pi * f * t + random.uniform(0, 6)) for f in (0.03, 0.05, 0.08))
        for _ in range(3)
    ]
    return np.stack([own[0], own[0] + 0.5 * own[1], own[2]], 1)


def write(root: Path, told: np.ndarray[Any, Any] | None = None, **more: Any) -> None:
    """A run that holds the signals, with drift and noise, and the atlas."""
    random = np.random.default_rng(1)
    voxels = 1000.0 * brain()[..., None] + random.normal(size=(*SHAPE, VOLUMES))
    voxels += brain()[..., None] * np.arange(VOLUMES)
    for place, number in enumerate((2, 5, 9)):
        voxels[regions() == number] += 10 * (signals() if told is None else told)[:, place]
    write_run(root, RUN, more.pop("voxels", voxels), **more)
    save(root / "atlas.nii.gz", regions())


def study(root: Path, **keys: Any) -> Connectome.Study:
    atlas = hashlib.sha256((root / "atlas.nii.gz").read_bytes()).hexdigest()
    usual = {"regions": 3, "least_points": 60, "measure": "pearson", "atlas": atlas}
    return Connectome.Study(kind="connectome", **{**usual, **keys})


def find(root: Path, agreed: Connectome.Study, **keys: Any) -> Found:
    site = Connectome.Site(kind="connectome", root=".", atlas="atlas.nii.gz", **keys)
    return ConnectomeReader.find(agreed, site, root, frozenset())


def prepared(root: Path, **keys: Any) -> Prepared:
    agreed = study(root, **keys)
    (source,) = find(root, agreed).sources
    return ConnectomeReader.prepare(agreed, source)


def test_a_run_becomes_the_connectome_of_its_regions(tmp_path: Path) -> None:
    """Drift is taken out, noise is averaged over voxels, and order is that of the numbers."""
    write(tmp_path)
    found = prepared(tmp_path)
    expected = np.corrcoef(signals().T)
    np.testing.assert_allclose(found.samples[0], expected, atol=0.05)
    assert found.quality["time_points"] == VOLUMES


def test_a_region_that_a_run_does_not_reach_is_silent_and_keeps_its_place(tmp_path: Path) -> None:
    """Columns that close up would compare one region of this person with another of the next."""
    write(tmp_path)
    mask = brain().astype(float)
    mask[regions() == 5] = 0
    save(tmp_path / f"sub-01/func/{RUN}_desc-brain_mask.nii.gz", mask)
    found = prepared(tmp_path, most_silent=0.4)
    assert not found.samples[0, 1].any()
    assert found.samples[0, 0, 2] == pytest.approx(np.corrcoef(signals().T)[0, 2], abs=0.05)
    assert any("no signal in region 2" in note for note in found.notes)


def test_a_constant_region_is_silent(tmp_path: Path) -> None:
    """What a filter leaves of a constant is rounding, which scaling would blow up to a signal."""
    write(tmp_path)
    voxels = np.repeat(1000.0 * brain()[..., None], VOLUMES, -1)
    for place, number in enumerate((2, 5)):
        voxels[regions() == number] += 10 * signals()[:, place]
    write(tmp_path, voxels=voxels)
    found = prepared(tmp_path, most_silent=0.4)
    assert not found.samples[0, 2].any()


def test_confounds_are_taken_out(tmp_path: Path) -> None:
    """Of a signal that the third region shares with a nuisance, nothing is left."""
    nuisance = np.random.default_rng(5).normal(size=VOLUMES)
    write(tmp_path, signals() + [[0, 0, 1]] * (4 * nuisance[:, None]))
    table = tmp_path / f"sub-01/func/{RUN.partition('_space')[0]}_desc-confounds_timeseries.tsv"
    write_table(table, ("csf",), [[value] for value in nuisance])
    with_it, without = prepared(tmp_path), prepared(tmp_path, confounds=("csf",))
    expected = np.corrcoef(signals().T)[0, 2]
    assert abs(without.samples[0, 0, 2] - expected) < 0.15
    assert abs(with_it.samples[0, 0, 2] - expected) > abs(without.samples[0, 0, 2] - expected)


def test_a_study_that_takes_confounds_out_leaves_out_a_run_without_them(tmp_path: Path) -> None:
    """Its connectome would be of another kind."""
    write(tmp_path)
    with pytest.raises(ScanError, match="no confounds table; the study takes csf out"):
        prepared(tmp_path, confounds=("csf",))


def test_a_run_of_another_space_is_left_out(tmp_path: Path) -> None:
    """The atlas lies in MNI152's; nothing would tell that regions are elsewhere."""
    write(tmp_path)
    write_run(tmp_path, "sub-02_task-rest_space-T1w")
    found = find(tmp_path, study(tmp_path))
    assert [source.participant for source in found.sources] == ["sub-01"]
    assert "in no space-MNI" in told(found)["sub-02/func/sub-02_task-rest_space-T1w_bold.nii.gz"]


def test_only_the_atlas_of_the_study_is_taken(tmp_path: Path) -> None:
    """Region 7 of one atlas is not that of another."""
    write(tmp_path)
    agreed = study(tmp_path)
    save(tmp_path / "atlas.nii.gz", np.roll(regions(), 1, 0))
    with pytest.raises(DataError, match="another file than the study's"):
        find(tmp_path, agreed)
    with pytest.raises(DataError, match="the study names no atlas"):
        find(tmp_path, study(tmp_path, atlas=""))
    (tmp_path / "atlas.nii.gz").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        find(tmp_path, agreed)


@pytest.mark.parametrize(
    ("keys", "told_of"),
    [
        ({"regions": 4}, "numbers 3 regions; the study has 4"),
        ({"least_points": 200}, "has 80 volumes"),
        ({"low_pass_s": 4.0}, "low_pass_s of 4 needs more"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, keys: dict[str, Any], told_of: str) -> None:
    """Each with what was found and what was needed."""
    write(tmp_path)
    with pytest.raises(ScanError, match=told_of):
        prepared(tmp_path, **keys)


@pytest.mark.parametrize(
    ("voxels", "told_of"),
    [(np.zeros(SHAPE), "volume 1 of 1: all its voxels are 0"), (0.5 * regions(), "numbers 3 regions"),
     (np.stack([regions()] * 2, -1), "has 2 volumes")],
)  # fmt: skip
def test_an_atlas_that_is_none_is_said(
    tmp_path: Path, voxels: np.ndarray[Any, Any], told_of: str
) -> None:
    """Its digest is the study's: nobody would look for the fault here."""
    write(tmp_path)
    save(tmp_path / "atlas.nii.gz", voxels)
    with pytest.raises(ScanError, match=f"the atlas atlas.nii.gz {told_of}"):
        prepared(tmp_path)


def test_a_finer_atlas_is_laid_on_the_grid_of_the_run(tmp_path: Path) -> None:
    """Atlases come at 1 or 2 mm, runs at 2 to 4."""
    write(tmp_path)
    fine = AFFINE.copy()
    fine[:3, :3] /= 2
    fine[:3, 3] -= 2
    save(tmp_path / "atlas.nii.gz", regions().repeat(2, 0).repeat(2, 1).repeat(2, 2), fine)
    found = prepared(tmp_path)
    np.testing.assert_allclose(found.samples[0], np.corrcoef(signals().T), atol=0.05)


def test_a_site_has_series_or_an_atlas() -> None:
    """With both nobody could say which is meant."""
    with pytest.raises(ValidationError, match="files and atlas are given"):
        Connectome.Site(kind="connectome", root=".", files="*.npy", atlas="a.nii")
    assert Connectome.Site(kind="connectome", root=".").files == "sub-*/func/*_timeseries.tsv"


def test_motion_that_nobody_knows_is_said(tmp_path: Path) -> None:
    """A limit that no table tells of limits nothing; a study without one has nothing to say."""
    write(tmp_path)
    found = told(find(tmp_path, study(tmp_path)))
    assert found["motion"].startswith("1 of 1 runs have no confounds table")
    assert "motion" not in told(find(tmp_path, study(tmp_path, most_motion_mm=0.0)))
