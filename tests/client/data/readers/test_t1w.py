"""Scans as hospitals have them: what is read, what is refused by name, what is flagged."""

from __future__ import annotations

import doctest
import gzip
import json
import os
import struct
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from client.data import tables
from client.data.anatomy import grid, orientation
from client.data.anatomy.background import head_of
from client.data.reader import Found, Prepared, Source
from client.data.readers import bids
from client.data.readers.nifti import read_header, read_voxels
from client.data.readers.t1w import T1wReader
from common.errors import DataError, ScanError
from common.kinds.t1w import T1w

SHARED = Path(__file__).parents[4].parent / "shared" / "data"
NASTY = SHARED / "nasty_nifti"
STUDY = T1w.Study(kind="t1w", shape=(24, 28, 24), spacing_mm=8.0)
real = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the shared real data are not on this machine"
)
CASES = json.loads((NASTY / "manifest.json").read_text()) if NASTY.is_dir() else []


@cache
def brain() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The MNI152 brain at 4 mm, (49, 58, 47) RAS, and its affine."""
    spec = find_spec("nilearn")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    image: Any = nibabel.load(
        folder / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    )
    return grid.shrunk(np.asarray(image.dataobj, dtype=np.float32), image.affine, 4.0)


def written(
    path: Path,
    voxels: Any = None,
    affine: Any = None,
    kind: Any = nibabel.Nifti1Image,
    **header: Any,
) -> Path:
    """A file of the MNI brain, or of whatever is given instead."""
    plain, placed = brain()
    image = kind(plain if voxels is None else voxels, placed if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def source(path: Path, unsure: bool = True) -> Source:
    payload = {"path": str(path), "unsure": unsure}
    return Source(participant="sub-01", scan=path.name, stamp="", row={}, payload=payload)


def prepared(path: Path, study: T1w.Study = STUDY, unsure: bool = True) -> Prepared:
    result = T1wReader.prepare(study, source(path, unsure))
    assert result.samples.shape == (1, *T1w.shape(study))
    assert result.samples.dtype == np.dtype(T1w.dtype)
    assert np.isfinite(result.samples).all()
    return result


def patched(path: Path, offset: int, form: str, *values: Any) -> Path:
    """Overwrite fields of a NIfTI-1 header on disk, as a broken exporter would."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(bytes(content))
    return path


# --- the published collection of awkward files -------------------------------------------------


@real
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_awkward_files_end_as_their_manifest_says(case: dict[str, str]) -> None:
    """Fourteen derivatives of one real scan, each with the outcome that its maker expects."""
    path = NASTY / case["file"]
    refusals = {
        "bad_nan_voxels.nii.gz": "NaN or infinite",
        "bad_all_zero.nii.gz": "all its voxels are 0",
        "bad_truncated.nii.gz": "cut off",
        "bad_empty.nii.gz": "empty",
        "bad_annex_pointer.nii.gz": "git-annex",
    }
    notes = {
        "bad_qform_sform_disagree.nii.gz": "disagree",
        "bad_no_orientation.nii.gz": "orientation unknown",
    }
    if case["file"] in refusals:
        with pytest.raises(ScanError, match=refusals[case["file"]]):
            prepared(path)
        return
    found = prepared(path).notes
    if case["file"] in notes:
        assert notes[case["file"]] in found[0]
        with pytest.raises(ScanError, match="unsure_orientation"):
            prepared(path, unsure=False)
    else:
        assert found == ()


@real
@pytest.mark.parametrize("file", ["ok_xflipped.nii.gz", "ok_axes_permuted.nii.gz"])
def test_how_voxels_are_stored_changes_nothing(file: str) -> None:
    """The same image in the world is the same sample, bit for bit, whatever its storage order."""
    plain = prepared(NASTY / "ok_int16.nii.gz").samples
    np.testing.assert_array_equal(prepared(NASTY / file).samples, plain)


@real
def test_the_headers_scaling_is_applied() -> None:
    """A file of raw integers with slope 0.25 and intercept -10 holds 0.25 * raw - 10."""
    raw = read_voxels(read_header(NASTY / "ok_int16.nii.gz"))
    scaled = read_voxels(read_header(NASTY / "ok_scaled_int16.nii.gz"))
    np.testing.assert_allclose(scaled, 0.25 * raw - 10, rtol=1e-6)


@real
@pytest.mark.parametrize("case", [c for c in CASES if c["file"].startswith("ok")], ids=str)
def test_voxels_are_those_that_nibabel_reads(case: dict[str, str]) -> None:
    """Our reader checks the checksum too; its values are the reference implementation's."""
    path = NASTY / case["file"]
    reference: Any = nibabel.load(path)
    expected = np.squeeze(reference.get_fdata()).astype(np.float32)
    np.testing.assert_allclose(read_voxels(read_header(path)), expected, rtol=1e-6, atol=1e-4)


# --- files made here ----------------------------------------------------------------------------


def test_headers_that_promise_too_much_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """A header of 348 bytes may claim 10^12 voxels; believing it would end the site."""
    path = written(tmp_path / "a.nii")
    patched(path, 40, "<8h", 3, 10_000, 10_000, 10_000, 1, 1, 1, 1)
    with pytest.raises(ScanError, match="1,000,000,000,000 voxels"):
        prepared(path)
    patched(path, 40, "<8h", 3, 600, 600, 600, 1, 1, 1, 1)
    with pytest.raises(ScanError, match="cannot hold"):
        prepared(path)
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ScanError, match=r"cannot hold|cut off"):
        prepared(packed)


@pytest.mark.parametrize("dims", [(3, -4, 20, 20), (3, 0, 20, 20), (9, 20, 20, 20), (-1, 1, 1, 1)])
def test_impossible_dimensions_are_refused(tmp_path: Path, dims: tuple[int, ...]) -> None:
    """Negative, zero and too many axes."""
    path = patched(written(tmp_path / "a.nii"), 40, "<4h", *dims)
    with pytest.raises(ScanError):
        prepared(path)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (np.complex64, "complex"),
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "RGB"),
    ],
)
def test_voxels_that_are_no_real_numbers_are_refused(
    tmp_path: Path, dtype: Any, message: str
) -> None:
    """Phase images and screenshots are not T1 images."""
    path = written(tmp_path / "a.nii.gz", np.zeros((20, 20, 20), dtype=dtype))
    with pytest.raises(ScanError, match=message):
        prepared(path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((49, 58), "a volume"),
        ((49, 58, 1), "a volume"),
        ((49, 58, 47, 2), "a series"),
        ((20, 20, 20, 1, 3), "a series"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    """A slice or a time series has lost its way into anat/."""
    voxels = np.random.default_rng(0).random(shape, dtype=np.float32)
    with pytest.raises(ScanError, match=message):
        prepared(written(tmp_path / "a.nii.gz", voxels))


def test_a_trailing_axis_of_one_is_dropped(tmp_path: Path) -> None:
    """(x, y, z, 1) is a volume that went through an fMRI tool."""
    voxels, _ = brain()
    four = prepared(written(tmp_path / "a.nii.gz", voxels[..., None]))
    three = prepared(written(tmp_path / "b.nii.gz"))
    np.testing.assert_array_equal(four.samples, three.samples)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite_refuses_the_scan(tmp_path: Path, value: float) -> None:
    """One NaN in a batch makes every weight of the network NaN."""
    voxels = brain()[0].copy()
    voxels[20, 20, 20] = value
    with pytest.raises(ScanError, match=r"1 of its 133,574 voxels"):
        prepared(written(tmp_path / "a.nii.gz", voxels))


def test_a_value_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    """It would become infinite on the way to the network."""
    voxels = brain()[0].astype(np.float64)
    voxels[20, 20, 20] = 1e300
    with pytest.raises(ScanError, match="infinite"):
        prepared(written(tmp_path / "a.nii.gz", voxels))


def test_a_constant_image_is_refused(tmp_path: Path) -> None:
    """Its standard deviation is zero, and z-scores divide by it."""
    with pytest.raises(ScanError, match="all its voxels are 7"):
        prepared(written(tmp_path / "a.nii.gz", np.full((20, 20, 20), 7, np.int16)))


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([4.0, 4.0, 0.0, 1.0]), "voxels are"),
        (np.diag([4.0, 4.0, np.nan, 1.0]), "not finite"),
        (np.diag([0.004, 0.004, 0.004, 1.0]), "voxels are"),
        (np.diag([400.0, 4.0, 4.0, 1.0]), "voxels are"),
        (np.array([[4, 4, 0, 0], [0, 0.1, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1.0]]), "sheared flat"),
        (np.array([[4, 0, 0, 1e6], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1.0]]), "5 m"),
    ],
    ids=["flat", "nan", "micrometres", "metres", "sheared", "elsewhere"],
)
def test_affines_that_place_no_head_are_refused(
    tmp_path: Path, affine: NDArray[np.float64], message: str
) -> None:
    """Zero spacing, wrong units and shear all make a grid that cannot be resampled."""
    voxels, placed = brain()
    image = nibabel.Nifti1Image(voxels, placed)
    image.header.set_qform(None, code=0)
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    patched(path, 280, "<12f", *affine[:3].ravel())
    patched(path, 252, "<2h", 0, 2)
    with pytest.raises(ScanError, match=message):
        prepared(path)


@pytest.mark.parametrize(
    ("units", "factor", "note"),
    [
        (1, 1e-3, "its header is in metres, converted to mm"),
        (3, 1e3, "its header is in micrometres, converted to mm"),
        (3 | 8, 1e3, "its header is in micrometres, converted to mm"),
        (1, 1.0, "its header says metres, but its voxels are 4 x 4 x 4, as in mm; taken as mm"),
        (3, 1.0, "its header says micrometres, but its voxels are 4 x 4 x 4, as in mm"),
        (2, 1.0, ""),
        (0, 1.0, ""),
    ],
)
def test_other_units_of_length_become_mm(
    tmp_path: Path, units: int, factor: float, note: str
) -> None:
    """A header in metres is an ordinary head; so is one in mm whose exporter wrote metres."""
    voxels, placed = brain()
    affine = np.diag([factor, factor, factor, 1.0]) @ placed
    path = written(tmp_path / "a.nii", voxels, affine, xyzt_units=units)
    header = read_header(path)
    np.testing.assert_allclose(header.affine, placed, rtol=1e-5, atol=1e-4)
    found = prepared(path)
    assert (note in found.notes[0]) if note else found.notes == ()
    plain = prepared(written(tmp_path / "plain.nii"))
    np.testing.assert_allclose(found.samples, plain.samples, atol=0.02)


@pytest.mark.parametrize("units", [1, 3])
def test_both_affines_of_a_header_are_in_its_units(tmp_path: Path, units: int) -> None:
    """Or the two would seem to disagree by metres."""
    voxels, placed = brain()
    factor = {1: 1e-3, 3: 1e3}[units]
    image = nibabel.Nifti1Image(voxels, np.diag([factor, factor, factor, 1.0]) @ placed)
    image.header["xyzt_units"] = units
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    nibabel.save(image, tmp_path / "a.nii")
    assert len(read_header(tmp_path / "a.nii").notes) == 1


@pytest.mark.parametrize(
    ("factor", "unit"), [(1e-3, "metres"), (1e3, "micrometres"), (0.02, "centimetres")]
)
def test_voxels_that_another_unit_would_explain_are_refused_with_its_name(
    tmp_path: Path, factor: float, unit: str
) -> None:
    """The header names no unit, and a guess could shrink a brain."""
    voxels, placed = brain()
    affine = np.diag([factor, factor, factor, 1.0]) @ placed
    with pytest.raises(ScanError, match=f"they would fit {unit}: correct the header's units"):
        prepared(written(tmp_path / "a.nii", voxels, affine))


def test_an_archive_of_a_cut_file_is_refused(tmp_path: Path) -> None:
    """Cut first and compressed afterwards: gzip finds nothing wrong."""
    plain = written(tmp_path / "a.nii").read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(plain[: len(plain) // 2]))
    with pytest.raises(ScanError, match=r"cut off: 2\d\d,\d\d\d of 534,296 bytes"):
        prepared(path)


def test_a_damaged_checksum_is_noticed(tmp_path: Path) -> None:
    """A flipped bit on an old disk may still decompress; only gzip's checksum tells."""
    path = written(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ScanError, match="damaged"):
        prepared(path)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("share", [0.0001, 0.3, 0.99])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, packed: bool, share: float) -> None:
    """An interrupted copy ends anywhere, also inside the header."""
    path = written(tmp_path / ("a.nii.gz" if packed else "a.nii"))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ScanError):
        prepared(path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("content", [b"hello\n" * 500, b"\0" * 5000, os.urandom(4096)])
def test_a_file_that_is_something_else_is_refused(
    tmp_path: Path, name: str, content: bytes
) -> None:
    """A .nii.gz that is not gzip, zeros, noise."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ScanError):
        prepared(path)


def test_an_unpacked_file_named_gz_is_refused(tmp_path: Path) -> None:
    """Renaming is not compressing."""
    path = written(tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    with pytest.raises(ScanError, match="gzip"):
        prepared(path)


def test_big_endian_and_nifti_2_read_alike(tmp_path: Path) -> None:
    """Old workstations and new pipelines write what a laptop does not."""
    plain = prepared(written(tmp_path / "plain.nii.gz")).samples
    voxels, affine = brain()
    big = nibabel.Nifti1Image(voxels, affine, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(big, tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == struct.pack(">i", 348)
    np.testing.assert_array_equal(prepared(tmp_path / "big.nii").samples, plain)
    second = written(tmp_path / "two.nii.gz", kind=nibabel.Nifti2Image)
    np.testing.assert_array_equal(prepared(second).samples, plain)


def test_analyze_and_paired_files_are_refused_clearly(tmp_path: Path) -> None:
    """Analyze says nothing of left and right; guessing would mirror brains."""
    nibabel.save(nibabel.AnalyzeImage(*brain()), tmp_path / "a.img")
    with pytest.raises(ScanError, match=r"NIfTI file \(.nii, .nii.gz\)"):
        prepared(tmp_path / "a.img")
    nibabel.save(nibabel.Nifti1Pair(*brain()), tmp_path / "b.img")
    with pytest.raises(ScanError, match="one NIfTI file"):
        prepared(tmp_path / "b.img")


def test_an_image_without_a_head_is_refused(tmp_path: Path) -> None:
    """A phantom of 3 cm, or a crop around one structure."""
    voxels = np.zeros((20, 20, 20), np.float32)
    voxels[5:12, 5:12, 5:12] = np.random.default_rng(0).random((7, 7, 7)) + 1
    with pytest.raises(ScanError, match="ml; a head"):
        prepared(written(tmp_path / "a.nii.gz", voxels))


def test_noise_around_a_head_is_told_and_is_no_part_of_the_sample(tmp_path: Path) -> None:
    """MP2RAGE: everything was head, and its noise what the brain was scaled by."""
    voxels, _ = brain()
    chance = np.random.default_rng(0)
    head = grid.foreground(voxels)
    noisy = np.where(head, voxels, chance.uniform(0, voxels.max(), voxels.shape))
    found = prepared(written(tmp_path / "a.nii", noisy.astype(np.float32)))
    assert "noise" in found.notes[0]
    plain = prepared(written(tmp_path / "plain.nii"))
    assert abs((found.samples != 0).mean() - (plain.samples != 0).mean()) < 0.1


@real
@pytest.mark.slow
def test_no_real_scan_is_without_background(tmp_path: Path) -> None:
    """With and without skull, defaced, at 2 mm and as acquired, cropped to its last voxel or not."""
    for root in ("t1_three_sites_2mm", "t1_native/ds000011", "t1_native/ds002748"):
        for scan in T1wReader.find(STUDY, T1w.Site(kind="t1w", root=root), SHARED).sources:
            header = read_header(Path(scan.payload["path"]))
            plain, affine = grid.to_ras(read_voxels(header), header.affine)
            for cropped in (False, True):
                small, at = grid.shrunk(plain, affine, 4.0)
                mask, note = head_of(plain, small, affine, 4.0)
                assert not note
                if not cropped:
                    box = ndimage.find_objects(mask.astype(int))[0]
                    plain, affine = small[box], at


# --- grid and intensities -----------------------------------------------------------------------


@pytest.mark.parametrize("spacing_mm", [2.0, 5.0, 8.0])
def test_a_smooth_image_keeps_its_place_and_values(spacing_mm: float) -> None:
    """Oracle: a ramp along each axis, sampled at the grid's own world coordinates."""
    affine = np.array(
        [[1.0, 0.1, 0, -60], [-0.1, 1.2, 0.05, -80], [0, -0.05, 1.5, -50], [0, 0, 0, 1]]
    )
    index = np.indices((120, 130, 90)).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    slope = np.array([0.3, -0.2, 0.5])
    voxels = (slope @ world).reshape(120, 130, 90).astype(np.float32)
    shape = (8, 8, 8)
    target = grid.grid_affine(shape, spacing_mm, (5.0, 0.0, 10.0))
    small, moved = grid.shrunk(voxels, affine, spacing_mm)
    found = grid.resampled(small, moved, target, shape)
    places = target[:3, :3] @ np.indices(shape).reshape(3, -1) + target[:3, 3:]
    np.testing.assert_allclose(found.ravel(), slope @ places, atol=0.02)


def test_detail_finer_than_the_grid_is_averaged_and_not_sampled() -> None:
    """A checkerboard of 1 mm has the value 0.5 at 8 mm; without smoothing it would be noise."""
    checker = (np.indices((96, 96, 96)).sum(axis=0) % 2).astype(np.float32)
    target = grid.grid_affine((8, 8, 8), 8.0, (47.5, 47.5, 47.5))
    small, moved = grid.shrunk(checker, np.eye(4), 8.0)
    found = grid.resampled(small, moved, target, (8, 8, 8))
    np.testing.assert_allclose(found, 0.5, atol=1e-3)
    # below twice the voxel there are no blocks to average: 0.09 without the blur
    uneven, moved = grid.shrunk(checker, np.eye(4), 1.7)
    target = grid.grid_affine((20, 20, 20), 1.7, (47.5, 47.5, 47.5))
    assert grid.resampled(uneven, moved, target, (20, 20, 20)).std() < 0.01


@pytest.mark.parametrize(("intensity", "mean", "spread"), [("zscore", 0, 1), ("mean", 1, None)])
def test_intensities_are_scaled_inside_the_head_alone(
    tmp_path: Path, intensity: Any, mean: float, spread: float | None
) -> None:
    """Scanner units mean nothing; outside the head is exactly 0."""
    study = STUDY.model_copy(update={"intensity": intensity})
    one = prepared(written(tmp_path / "a.nii.gz"), study).samples[0].astype(np.float64)
    assert (one[0] == 0).all()
    inside = one[one != 0]
    assert inside.mean() == pytest.approx(mean, abs=2e-3)
    if spread is not None:
        assert inside.std() == pytest.approx(spread, abs=2e-3)
    louder = prepared(written(tmp_path / "b.nii.gz", brain()[0] * 37), study).samples[0]
    np.testing.assert_allclose(louder.astype(np.float64), one, atol=4e-3)


def test_centring_follows_the_head_and_world_does_not(tmp_path: Path) -> None:
    """A head 40 mm off the scanner's centre: aligned by its content, or cut as the header says."""
    _, affine = brain()
    moved = affine.copy()
    moved[:3, 3] += [40, -40, 40]
    here, there = written(tmp_path / "a.nii.gz"), written(tmp_path / "b.nii.gz", affine=moved)
    np.testing.assert_array_equal(prepared(here).samples, prepared(there).samples)
    world = STUDY.model_copy(update={"align": "world"})
    assert not np.array_equal(prepared(here, world).samples, prepared(there, world).samples)
    moved[:3, 3] += [0, -100, 0]
    with pytest.raises(ScanError, match='align = "centre"'):
        prepared(written(tmp_path / "c.nii.gz", affine=moved), world)


def test_world_grids_lie_around_the_mni_brain() -> None:
    """Middle of the box around the template's brain, from the template itself."""
    voxels, affine = brain()
    ends = np.array([axis[[0, -1]] for axis in map(np.sort, np.nonzero(voxels > 0))])
    middle = affine[:3, :3] @ ends.mean(axis=1) + affine[:3, 3]
    np.testing.assert_allclose(middle, grid.MNI_CENTRE_MM, atol=3.0)


# --- orientation by content ---------------------------------------------------------------------


def turned(path: Path, turn: orientation.Turn, folder: Path) -> Path:
    """The scan stored in another order under the header of the old one: a header that lies."""
    image: Any = nibabel.load(path)
    voxels, affine = grid.to_ras(np.asarray(image.dataobj, dtype=np.float32), image.affine)
    steps = np.linalg.norm(affine[:3, :3], axis=0)[list(turn.axes)]
    lying = np.diag([*steps, 1.0])
    name = f"{turn}-{path.name}"
    return written(
        folder / name.replace(".gz", ""), np.ascontiguousarray(turn.applied(voxels)), lying
    )


@real
def test_no_real_scan_is_taken_for_turned() -> None:
    """90 scans of three sites: a false alarm would cost a hospital its data."""
    site = T1w.Site(kind="t1w", root="t1_three_sites_2mm")
    found = T1wReader.find(STUDY, site, SHARED, frozenset())
    assert len(found.sources) == 90
    assert not found.findings
    for scan in found.sources:
        assert T1wReader.prepare(STUDY, scan).notes == ()


@real
@pytest.mark.slow
def test_no_scan_as_acquired_is_taken_for_turned() -> None:
    """Eight at full resolution."""
    for root, count in (("t1_native/ds000011", 3), ("t1_native/ds002748", 5)):
        found = T1wReader.find(STUDY, T1w.Site(kind="t1w", root=root), SHARED, frozenset())
        assert len(found.sources) == count
        for scan in found.sources:
            assert T1wReader.prepare(STUDY, scan).notes == ()


@real
def test_most_turned_scans_are_noticed(tmp_path: Path) -> None:
    """Every 15th real scan in each of the 23 wrong ways; over all scans 64 % are left out."""
    found = T1wReader.find(
        STUDY, T1w.Site(kind="t1w", root="t1_three_sites_2mm"), SHARED, frozenset()
    )
    refused = []
    for scan in found.sources[::15]:
        for turn in orientation.turns()[1:]:
            path = turned(Path(scan.payload["path"]), turn, tmp_path)
            try:
                prepared(path)
                refused.append(False)
            except ScanError as error:
                refused.append("its axes seem to be" in str(error))
            path.unlink()
    assert np.mean(refused) > 0.55


def test_the_template_itself_is_noticed_in_most_ways(tmp_path: Path) -> None:
    """Where no real scans are: the MNI brain, turned; in its own placing it is never doubted."""
    path = written(tmp_path / "plain.nii")
    assert prepared(path).notes == ()
    refused = 0
    for turn in orientation.turns()[1:]:
        try:
            prepared(turned(path, turn, tmp_path))
        except ScanError:
            refused += 1
    assert refused >= 20


# --- finding ------------------------------------------------------------------------------------


def bids_folder(root: Path, table: str | bytes | None, *scans: str) -> Path:
    root.mkdir(exist_ok=True)
    if table is not None:
        content = table.encode() if isinstance(table, str) else table
        (root / "participants.tsv").write_bytes(content)
    for scan in scans:
        path = root / scan
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def found_in(root: Path, **keys: Any) -> Found:
    site = T1w.Site(kind="t1w", root=root.name, **keys)
    return T1wReader.find(STUDY, site, root.parent, frozenset({"age", "sex"}))


ONE = "sub-01/anat/sub-01_T1w.nii.gz"
TWO = "sub-02/ses-b/anat/sub-02_ses-b_run-1_T1w.nii.gz"
TWO_EARLIER = "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii"


def test_sessions_and_runs_are_found_in_a_stable_order(tmp_path: Path) -> None:
    """Order decides the bytes of the prepared file; it must not depend on the file system."""
    table = "participant_id\tage\nsub-02\t50\n01\t40\n"
    root = bids_folder(tmp_path / "d", table, TWO, ONE, TWO_EARLIER)
    (root / "sub-01/anat/sub-01_T1w.json").write_text("{}")
    (root / "sub-01/anat/sub-01_T2w.nii.gz").write_text("x")
    found = found_in(root)
    assert [s.scan for s in found.sources] == [ONE, TWO_EARLIER, TWO]
    assert [s.participant for s in found.sources] == ["sub-01", "sub-02", "sub-02"]
    assert [s.row["age"] for s in found.sources] == ["40", "50", "50"]
    (note,) = found.findings
    assert "1 people have scans of several sessions and no table of them" in note.problem


def test_what_differs_between_visits_comes_from_the_sessions_table(tmp_path: Path) -> None:
    """People age between scans; BIDS keeps that in sub-*_sessions.tsv."""
    root = bids_folder(
        tmp_path / "d", "participant_id\tage\tsex\nsub-02\t50\tF\n", TWO, TWO_EARLIER
    )
    (root / "sub-02/sub-02_sessions.tsv").write_text("session_id\tage\nses-b\t53\n")
    rows = [source.row for source in found_in(root).sources]
    # the first visit has no row: its age is not known, and not another visit's
    assert [(row.get("age"), row["sex"]) for row in rows] == [(None, "F"), ("53", "F")]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"\x00" * 50, "not text"),
        ("subject\tage\nsub-01\t40\n", 'no column "participant_id"'),
        ("participant_id\tparticipant_id\nsub-01\tsub-01\n", "more than one column"),
        ("participant_id\tage\nsub-03\t40\n", "has a row but no scan"),
        ("participant_id\tage\nsub-01\t40\nsub-01\t40\n", "with the same entries"),
        ("participant_id\tage\n../../etc\t40\nsub-01\t1\n", "sub-LABEL is needed"),
        ("participant_id\tage\nsub-01\t40\nsub-0\x00\t4\n", "NUL"),
    ],
)
def test_a_poor_participants_table_is_told_and_scans_stay(
    tmp_path: Path, table: str | bytes | None, problem: str
) -> None:
    """Scans without labels still pretrain a backbone; the site hears what is wrong."""
    found = found_in(bids_folder(tmp_path / "d", table, ONE))
    assert [source.scan for source in found.sources] == [ONE]
    assert any(problem in finding.problem for finding in found.findings)


def test_rows_that_contradict_each_other_leave_the_participant_out(tmp_path: Path) -> None:
    """Nobody can tell which age is right."""
    table = "participant_id\tage\nsub-01\t40\nsub-01\t41\nsub-02\t30\n"
    found = found_in(bids_folder(tmp_path / "d", table, ONE, TWO))
    assert [source.participant for source in found.sources] == ["sub-02"]
    assert "line 2 already, with other entries" in found.findings[0].problem


def test_the_row_filter_tells_the_sites_of_one_folder_apart(tmp_path: Path) -> None:
    """Other sites' people are no finding; a scan that cannot be assigned is left out."""
    table = "\ufeffparticipant_id\tsite\r\nsub-01\tucla\r\nsub-02\tnsk\r\n"
    third = "sub-03/anat/sub-03_T1w.nii.gz"
    root = bids_folder(tmp_path / "d", table, ONE, TWO, third)
    found = found_in(root, rows={"site": "ucla"})
    assert [source.participant for source in found.sources] == ["sub-01"]
    assert [(f.what, f.left_out) for f in found.findings] == [("sub-03", True)]
    with pytest.raises(DataError, match=r'no column "sit"; did you mean "site"\?'):
        found_in(root, rows={"sit": "ucla"})


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    """A link must not turn the rest of a hospital's disk into training data."""
    root = bids_folder(tmp_path / "d", "participant_id\nsub-01\n", ONE)
    outside = tmp_path / "outside.nii.gz"
    outside.write_bytes(b"x")
    (root / "sub-01/anat/sub-01_run-2_T1w.nii.gz").symlink_to(outside)
    (root / "sub-01/anat/sub-01_run-3_T1w.nii.gz").symlink_to(root / "absent")
    (root / "sub-01/anat/sub-01_run-4_T1w.nii.gz").symlink_to(root / ONE)
    loop = root / "sub-01/anat/sub-01_run-5_T1w.nii.gz"
    loop.symlink_to(loop)
    found = found_in(root)
    names = [Path(source.scan).name for source in found.sources]
    assert names == ["sub-01_T1w.nii.gz", "sub-01_run-4_T1w.nii.gz"]
    assert [("out of" in f.problem, "to nothing" in f.problem) for f in found.findings] == [
        (True, False),
        (False, True),
        (False, True),
    ]


def test_other_formats_and_misplaced_files_are_named(tmp_path: Path) -> None:
    """A site with MINC files should hear that, not that it has no data."""
    root = bids_folder(
        tmp_path / "d",
        "participant_id\nsub-01\n",
        "sub-01/anat/sub-01_T1w.mnc",
        "sub-01/anat/sub-01_T1w.img",
        "sub-01/anat/sub-02_T1w.nii.gz",
    )
    found = found_in(root)
    assert not found.sources
    problems = {finding.what: finding.problem for finding in found.findings}
    assert "convert it to NIfTI" in problems["sub-01/anat/sub-01_T1w.mnc"]
    assert "convert it to NIfTI" in problems["sub-01/anat/sub-01_T1w.img"]
    assert "lies in sub-01" in problems["sub-01/anat/sub-02_T1w.nii.gz"]


def test_derivatives_are_chosen_by_entities(tmp_path: Path) -> None:
    """fMRIPrep writes one T1w in native and one in each template's space."""
    folder = "derivatives/fmriprep/sub-01/anat"
    space = f"{folder}/sub-01_space-MNI152NLin2009cAsym_desc-preproc_T1w.nii.gz"
    root = bids_folder(
        tmp_path / "d",
        "participant_id\tage\nsub-01\t9\n",
        ONE,
        f"{folder}/sub-01_desc-preproc_T1w.nii.gz",
        space,
    )
    keys = {"space": "MNI152NLin2009cAsym"}
    (one,) = found_in(root, derivative="derivatives/fmriprep", entities=keys).sources
    assert Path(one.payload["path"]) == root / space
    assert one.row["age"] == "9"


def test_the_stamp_changes_with_the_file_and_with_what_is_asked(tmp_path: Path) -> None:
    """It decides what is prepared anew."""
    root = bids_folder(tmp_path / "d", None, ONE)
    first = found_in(root).sources[0].stamp
    assert found_in(root).sources[0].stamp == first
    assert found_in(root, unsure_orientation="leave out").sources[0].stamp != first
    os.utime(root / ONE, ns=(1, 1))
    assert found_in(root).sources[0].stamp != first


def test_a_site_without_its_folder_is_an_error_and_without_scans_a_finding(tmp_path: Path) -> None:
    """The first is a mistake in the site file; the second may be filled tomorrow."""
    with pytest.raises(DataError, match="absent does not exist"):
        found_in(tmp_path / "absent")
    found = found_in(bids_folder(tmp_path / "d", None))
    assert "no usable" in found.findings[-1].problem


def test_a_large_folder_is_found_within_a_second(tmp_path: Path) -> None:
    """2,000 participants; the reason for not indexing the whole data set."""
    names = [f"sub-{n:04d}" for n in range(2000)]
    table = "participant_id\tage\n" + "".join(f"{name}\t40\n" for name in names)
    root = bids_folder(tmp_path / "d", table, *(f"{n}/anat/{n}_T1w.nii.gz" for n in names))
    began = os.times().user
    assert len(found_in(root).sources) == 2000
    assert os.times().user - began < 2


@real
def test_published_layouts_are_understood(tmp_path: Path) -> None:
    """BIDS examples as unpacked: empty images, sessions, people without scans."""
    import tarfile

    expected = {"ds001": 16, "ds003": 13, "ds101": 21, "synthetic": 10, "pheno004": None}
    for name, count in expected.items():
        with tarfile.open(SHARED / "bids_layouts" / f"{name}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        found = found_in(tmp_path / name)
        if count is not None:
            assert len(found.sources) == count
        for scan in found.sources:
            with pytest.raises(ScanError):  # the images are empty or header only, by design
                T1wReader.prepare(STUDY, scan)


# --- regions ------------------------------------------------------------------------------------


def test_regional_measures_are_read_by_participant_and_session(tmp_path: Path) -> None:
    """In the study's order; without one, by name, so that a site's column order means nothing."""
    (tmp_path / "r.tsv").write_text(
        "participant_id\tsession\tb\tnote\ta\nsub-01\tn/a\t1\tx\t2\n02\t1\t3\ty\tn/a\n"
    )
    site = T1w.Site(kind="t1w", root="d", regions="r.tsv")
    got = dict(T1wReader.regions(STUDY, site, tmp_path))
    assert list(got) == ["sub-01", "sub-02/ses-1"]
    assert got["sub-01"].tolist() == [2.0, 1.0]
    assert np.isnan(got["sub-02/ses-1"][0])
    chosen = STUDY.model_copy(update={"regions": ("b",)})
    assert dict(T1wReader.regions(chosen, site, tmp_path))["sub-01"].tolist() == [1.0]
    wrong = STUDY.model_copy(update={"regions": ("c",)})
    with pytest.raises(DataError, match='no column "c"'):
        dict(T1wReader.regions(wrong, site, tmp_path))


@pytest.mark.parametrize("module", [bids, grid, orientation, tables])
def test_the_examples_in_the_documentation_run(module: Any) -> None:
    """A docstring that is wrong is worse than none."""
    assert doctest.testmod(module).failed == 0


def test_reading_a_scan_imports_neither_torch_nor_nilearn() -> None:
    """Workers start in a fraction of a second because they import little."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[4])!r})\n"
        "import client.data.workers, client.data.check, client.data.readers.t1w\n"
        "from client.data.anatomy import orientation; orientation._bank()\n"
        "print(sorted({'torch', 'nilearn', 'pandas', 'monai'} & set(sys.modules)))"
    )
    import subprocess

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
