"""Heads made on the fly: those that a scan on disk would give, with labels that are their own."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from client.data.anatomy.grid import _filled
from client.data.lazy import Lazy
from client.data.reader import Found, Source
from client.data.readers.t1w import T1wReader
from client.data.synthesis import heads, volumes
from client.data.synthesis.anatomy import Head, Scanner, build_anatomy, origins, render
from client.data.synthesis.heads import COLUMNS, SyntheticT1wReader
from client.data.synthesis.people import draw_scanner, scan
from common.kinds.synthetic_t1w import SyntheticT1w
from common.kinds.t1w import T1w

COARSE: dict[str, Any] = {"shape": (16, 20, 16), "spacing_mm": 10.0}
ALL = frozenset(COLUMNS)


def study(**keys: Any) -> SyntheticT1w.Study:
    return SyntheticT1w.Study(kind="synthetic-t1w", **{**COARSE, **keys})


def find(people: int, seed: int = 5, columns: frozenset[str] = ALL, **keys: Any) -> Found:
    site = SyntheticT1w.Site(kind="synthetic-t1w", seed=seed, people=people)
    return SyntheticT1wReader.find(study(**keys), site, Path(), columns)


@pytest.mark.parametrize("intensity", ["zscore", "mean"])
@pytest.mark.parametrize("align", ["world", "centre"])
def test_a_head_is_prepared_as_the_same_scan_on_disk_would_be(
    tmp_path: Path, align: str, intensity: str
) -> None:
    """Else a network pretrained on it would meet other axes, scales or masks in real scans."""
    agreed = study(align=align, intensity=intensity)
    real = T1w.Study(kind="t1w", **COARSE, align=align, intensity=intensity)
    anatomy = heads._anatomy(agreed.shape, agreed.spacing_mm)
    for source in find(3).sources:
        head = scan(anatomy, *heads._drawn(source.payload), 0)
        path = tmp_path / "sub-01_T1w.nii"
        nib.save(nib.Nifti1Image(head, anatomy.affine), path)
        on_disk = Source(participant="sub-01", scan="sub-01", stamp="", row={},
                         payload={"path": str(path), "unsure": True})  # fmt: skip
        found = SyntheticT1wReader.prepare(agreed, source).samples
        np.testing.assert_array_equal(found, T1wReader.prepare(real, on_disk).samples)
        assert found.dtype == np.dtype(SyntheticT1w.dtype)
        assert found.shape[1:] == SyntheticT1w.shape(agreed)


def test_who_a_number_is_depends_on_nobody_else() -> None:
    """A site that is made larger keeps its people, and so its splits; a thread may ask for any."""
    few, many = find(3).sources, find(9).sources
    assert few == many[:3]
    agreed = study()
    forwards = [SyntheticT1wReader.prepare(agreed, source).samples for source in many]
    with ThreadPoolExecutor(4) as pool:
        read = lambda source: SyntheticT1wReader.prepare(agreed, source).samples  # noqa: E731
        backwards = list(pool.map(read, reversed(pickle.loads(pickle.dumps(many)))))
    np.testing.assert_array_equal(forwards, backwards[::-1])
    assert len({sample.tobytes() for sample in forwards}) == len(many)
    others = {source.participant for source in find(9, seed=6).sources}
    assert not others & {source.participant for source in many}


def test_a_person_is_the_same_at_every_resolution_and_with_every_scanner() -> None:
    """The labels of two studies of one source may be compared."""
    rows = [dict(source.row) for source in find(4).sources]
    finer = find(4, shape=(20, 24, 20), spacing_mm=8.0)
    assert [dict(source.row) for source in finer.sources] == rows
    plain = [source.row["age"] for source in find(4, strength=0.0).sources]
    assert plain == [row["age"] for row in rows]


def test_labels_that_nobody_asks_for_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes take as long as a coarse head: ages alone are there at once."""
    monkeypatch.setattr(heads, "_measured", None)
    assert set(find(2, columns=frozenset({"age"})).sources[0].row) == {"age", "sex"}


def test_volumes_are_those_of_the_warped_tissue_maps_on_a_finer_grid() -> None:
    """Against maps of 4 mm: within 0.5 % for the brain and 3 % for ventricles of 15 ml."""
    fine = build_anatomy(4.0)
    maps, affine = volumes.fine_tissues()
    inside = tuple(np.rint(np.array(volumes._IN_VENTRICLE_MM) - affine[:3, 3]).astype(int))
    pieces, _ = ndimage.label(maps[2] > 0.5)
    fluid = maps[2] * ndimage.binary_dilation(pieces == pieces[inside])
    ventricles = volumes.averaged(fluid[None], affine, fine.affine, fine.shape)[0]
    for source in find(6).sources:
        hospital, people = heads._drawn(source.payload)
        head = people.head(0)
        at = origins(fine, head, draw_scanner(hospital))
        grey, white, in_ventricles = (
            ndimage.map_coordinates(each, at, order=1).sum(dtype=float) * 4**3 / 1000
            for each in (*fine.tissues[:2], ventricles)
        )
        brain = (1 - head.thinning) * grey + white
        assert float(source.row["brain_volume"]) == pytest.approx(brain, rel=0.005)
        assert float(source.row["ventricle_volume"]) == pytest.approx(in_ventricles, rel=0.03)


PLAIN = Scanner(
    gamma=1, grey_shift=0, white_shift=0, bias=np.zeros(6), blur_voxels=0, noise=0, zoom=0
)


def test_volumes_are_those_that_the_image_shows() -> None:
    """The dark piece around the frontal horns, and all that is not dark, in noiseless pictures."""
    anatomy = build_anatomy(2.5)
    horns = [
        tuple(np.rint(np.linalg.inv(anatomy.affine)[:3] @ [x, -5, 22, 1]).astype(int))
        for x in (-10, 10)
    ]
    told, seen = [], []
    for scale, size in ((-0.1, 0.0), (0.0, 0.0), (0.1, 0.0), (0.0, 0.05)):
        scales = np.array([scale * ("ventricle" in name) for name in anatomy.regions.names])
        head = Head(
            log_scales=scales, size=size, age_z=0.0, thinning=0.0, brightness=np.zeros(len(scales))
        )
        image = render(anatomy, head, PLAIN, np.random.default_rng(0))
        pieces, _ = ndimage.label((image > 0) & (image < 0.45))
        dark = np.isin(pieces, [pieces[horn] for horn in horns])
        told.append(volumes.volumes_of(head, PLAIN))
        seen.append((dark.sum() * 2.5**3 / 1000, (image > 0.4).sum() * 2.5**3 / 1000))
    ratios = np.array(told) / np.array(seen)
    assert ratios == pytest.approx(np.ones_like(ratios), abs=0.1), ratios
    ventricles = [each.ventricles_ml for each in told]
    assert ventricles[0] < 0.95 * ventricles[1] < 0.95 * 0.95 * ventricles[2]
    assert told[3].brain_ml / told[1].brain_ml == pytest.approx(1.05**3, rel=0.02)


def test_nothing_of_the_ventricles_lies_where_it_is_not_looked_for() -> None:
    """The largest of many people's, with every voxel looked at."""
    ruler, ventricles, around = volumes._ruler()
    assert around.mean() < 0.35
    for source in find(40).sources:
        hospital, people = heads._drawn(source.payload)
        at = origins(ruler, people.head(0), draw_scanner(hospital))
        found = ndimage.map_coordinates(ventricles, at, order=1)
        assert found[~around].sum() == 0


def test_a_grid_that_the_brain_does_not_fit_in_is_refused_with_one_that_it_does() -> None:
    """Found when the study is written, by whoever writes it."""
    with pytest.raises(ValueError, match=r"at 4 mm the brain needs \[36, 44, 36\] or more"):
        SyntheticT1w.shape(study(shape=(32, 44, 36), spacing_mm=4.0))
    assert SyntheticT1w.shape(study(shape=(36, 44, 36), spacing_mm=4.0)) == (36, 44, 36)
    with pytest.raises(ValidationError):
        study(spacing_mm=1.0)


def test_lazy_samples_are_the_readers_own() -> None:
    """What training reads, in whatever order it asks."""
    agreed, sources = study(), find(5, columns=frozenset()).sources
    whole: Any = SimpleNamespace(
        kind_name="synthetic-t1w", data=agreed, shape=agreed.shape, kind=SyntheticT1w
    )
    batch = Lazy(whole, sources)[np.array([4, 0])]
    wanted = [SyntheticT1wReader.prepare(agreed, sources[n]).samples[0] for n in (4, 0)]
    np.testing.assert_array_equal(batch, wanted)


def test_holes_are_filled_as_scipy_fills_them() -> None:
    """The quicker way is another way to the same mask."""
    random = np.random.default_rng(0)
    for share in (0.3, 0.6, 0.9):
        mask = random.random((9, 8, 7)) < share
        np.testing.assert_array_equal(_filled(mask), ndimage.binary_fill_holes(mask))
