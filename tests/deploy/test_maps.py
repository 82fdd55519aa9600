"""Group maps lie where a brain lies, are means over sites, and are shown by the report."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nilearn.datasets import load_mni152_brain_mask

from common.errors import DamagedError
from common.protocol.orders import Report
from common.protocol.wire import spool
from common.study import parse_study
from deploy.maps import group_maps, write_maps
from server.report.page import write_report
from server.results import write_results
from server.run import Run, open_run

SHAPE = (20, 24, 20)
STATES = ("faces", "places", "tools")


def run_with(
    folder: Path,
    sent: dict[str, float],
    *,
    align: str = "world",
    classes: tuple[str, ...] = STATES,
    **task: object,
) -> Run:
    """A run whose sites sent maps that are one number inside a corner, by site and repeat."""
    study = parse_study(
        {
            "name": "trial",
            "data": {"kind": "t1w", "shape": list(SHAPE), "spacing_mm": 8.0, "align": align},
            "targets": {
                "age": {"kind": "regression", "unit": "years"},
                "state": {"kind": "categorical", "classes": list(classes)},
            },
            "backbone": {"name": "sfcn", "channels": [4], "top": 4},
            "objective": {"name": "multitask"},
            "sites": {"train": ["amber", "birch"]},
            "finetuning": [
                {"name": "states", "target": "state", "then": ["explain"],
                 "methods": ["pretrained/full"], **task}
            ],
        },
        Path("study.toml"),
    )  # fmt: skip
    with open_run(folder, study) as run:
        for place, value in sent.items():
            volume = np.zeros(SHAPE, np.float32)
            volume[2:5, 12, 10] = value
            if task.get("maps") == "relevance":
                volume = np.stack([volume, -volume, 2 * volume])
            report = Report(order="0" * 64, site=place.partition("/")[2], kind="explain")
            path = run.folder / "explain/states" / f"{place}.safetensors"
            spool(path, report, {"map": volume})
        write_results(run)
        return run


def test_sites_count_once_however_often_they_trained(tmp_path: Path) -> None:
    """A mean over repeats first, then over sites."""
    run = run_with(
        tmp_path / "run",
        {
            "pretrained-full-repeat0/amber": 1.0,
            "pretrained-full-repeat1/amber": 3.0,
            "pretrained-full-repeat0/birch": 8.0,
        },
    )
    (found,) = group_maps(run)
    assert (found.way, found.group, found.sites) == ("pretrained-full", "", ("amber", "birch"))
    assert found.volume.max() == 5.0


def test_every_class_has_a_file_on_the_grid_of_the_study(tmp_path: Path) -> None:
    """Another program lays them on a template: the voxel's left is the brain's left."""
    ways = {"pretrained-full-repeat0/amber": 1.0}
    run = run_with(tmp_path / "run", ways, maps="relevance")
    paths = write_maps(run)
    assert [path.name for path in paths] == [
        "01-faces.nii.gz",
        "02-places.nii.gz",
        "03-tools.nii.gz",
    ]
    image = nibabel.load(paths[0])
    loud = np.argwhere(image.get_fdata() > 0)
    assert (nibabel.affines.apply_affine(image.affine, loud)[:, 0] < -30).all()
    brain = load_mni152_brain_mask(8)
    middle = nibabel.affines.apply_affine(image.affine, (np.array(SHAPE) - 1) / 2)
    inside = nibabel.affines.apply_affine(np.linalg.inv(brain.affine), middle).round().astype(int)
    assert brain.get_fdata()[tuple(inside)] == 1
    assert nibabel.load(paths[1]).get_fdata().min() == -1.0


def test_the_same_maps_are_the_same_bytes_and_the_report_shows_them(tmp_path: Path) -> None:
    """Whoever runs the command again overwrites nothing by something else."""
    run = run_with(tmp_path / "run", {"pretrained-full-repeat0/amber": 1.0}, maps="relevance")
    first = {path: path.read_bytes() for path in write_maps(run)}
    assert first == {path: path.read_bytes() for path in write_maps(run)}
    page = write_report(run).read_text()
    assert "Where tuned networks look" in page
    assert page.count("glass brain from the left") == len(STATES)


def test_a_run_without_maps_has_no_such_section(tmp_path: Path) -> None:
    """Most runs."""
    run = run_with(tmp_path / "run", {})
    assert write_maps(run) == []
    assert "Where tuned networks look" not in write_report(run).read_text()


def test_a_report_that_rotted_is_not_averaged(tmp_path: Path) -> None:
    """A map with a flipped bit looks like a map."""
    run = run_with(tmp_path / "run", {"pretrained-full-repeat0/amber": 1.0})
    file = run.folder / "explain/states/pretrained-full-repeat0/amber.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError):
        write_maps(run)


def test_a_class_may_be_named_as_no_file_may(tmp_path: Path) -> None:
    """A study from elsewhere chooses its words, and not where this machine writes."""
    classes = ("MCI / AD", "../../../loose", "MCI AD")
    run = run_with(tmp_path / "run", {"pretrained-full-repeat0/amber": 1.0}, classes=classes,
                   maps="relevance")  # fmt: skip
    names = [path.relative_to(run.folder).as_posix() for path in write_maps(run)]
    inside = "maps/states/pretrained-full"
    assert names == [f"{inside}/{name}.nii.gz" for name in ("01-MCI-AD", "02-loose", "03-MCI-AD")]


def test_scans_as_acquired_are_not_drawn_into_a_template(tmp_path: Path) -> None:
    """Their grid lies around each head: MNI152's outline would tell of other places."""
    run = run_with(tmp_path / "run", {"pretrained-full-repeat0/amber": 1.0}, align="centre")
    assert len(write_maps(run)) == 1
    assert not list((run.folder / "maps").rglob("*.png"))


def test_what_is_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    """Seconds a picture, each time that a finished run is shown."""
    run = run_with(tmp_path / "run", {"pretrained-full-repeat0/amber": 1.0})
    write_maps(run)
    (picture,) = (run.folder / "maps").rglob("*.png")
    first = picture.stat().st_mtime_ns
    write_maps(run)
    assert picture.stat().st_mtime_ns == first


def test_a_network_that_says_nothing_has_a_map_and_no_picture(tmp_path: Path) -> None:
    """0 everywhere: there is nothing to draw, and no other map may be lost to it."""
    run = run_with(tmp_path / "run", {"pretrained-full-repeat0/amber": 0.0}, maps="relevance")
    assert len(write_maps(run)) == len(STATES)
    assert not list((run.folder / "maps").rglob("*.png"))
