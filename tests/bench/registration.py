"""Where 98 real scans come to lie on MNI152: overlap with its brain, scan by scan, and seconds a scan.

`overlap` is what a site judges a registration by: Dice of the template's brain with what seems to
be the scan's: its foreground where it came without skull, else `client.data.anatomy.brain`'s
estimate, which knows no template. `labels` is the same with the brain of DLMUSE's labels, where a
scan has them: nothing of ours made those, and they leave out fluid that the template's brain holds.
No bound was chosen by these figures.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SITES = ("t1_three_sites_2mm", "t1_native/ds002748", "t1_native/ds000011")
DERIVED = "derivatives/dlmuse/{0}/anat/{0}_space-orig_desc-dlmuse_dseg.nii.gz"
TIMED = 8  # scans for each way to prepare, every twelfth; rigid takes what affine takes
WAYS = (("none", False), ("none", True), ("affine", False), ("affine", True))


def table() -> str:
    """One line a scan, then what each way to prepare takes."""
    scans = [
        (root, path)
        for root in SITES
        for path in sorted((SHARED / root).glob("sub-*/anat/*_T1w.nii.gz"))
    ]
    if not scans:
        return f"no scans in {SHARED}: nothing to register"
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("forkserver")) as pool:
        rows = list(pool.map(_laid, scans))
        timed = [(way, list(pool.map(_seconds, [way] * TIMED, scans[::12]))) for way in WAYS]
    laid = [row for row in rows if row["placing"]]
    overlaps = [row["placing"].overlap for row in laid]
    labels = [row["labels"] for row in laid if row["labels"]]
    told = (
        f"{len(scans)} scans, {len(laid)} laid on MNI152: overlap {min(overlaps):.3f} to "
        f"{max(overlaps):.3f}, median {np.median(overlaps):.3f}; with DLMUSE's labels "
        f"({len(labels)} scans) {min(labels):.3f} to {max(labels):.3f}, "
        f"median {np.median(labels):.3f}"
    )
    return "\n".join(
        [
            told,
            "",
            "| scan | overlap | labels | correlation | shift mm | turn degrees | size | or why not |",
            "|---|---|---|---|---|---|---|---|",
            *(_row(row) for row in rows),
            "",
            "preparing on a grid of 96 x 112 x 96 at 2 mm",
            "",
            "| registration | N4 | seconds of processor time a scan, median | most |",
            "|---|---|---|---|",
            *(
                f"| {way[0]} | {'yes' if way[1] else 'no'} | {np.median(took):.1f} | {max(took):.1f} |"
                for way, took in timed
            ),
        ]
    )


def _row(row: dict[str, Any]) -> str:
    if row["placing"] is None:
        return f"| {row['scan']} | | | | | | | {row['why']} |"
    found = row["placing"].figures
    labels = f"{row['labels']:.3f}" if row["labels"] else ""
    return (
        f"| {row['scan']} | {found['overlap']:.3f} | {labels} | {found['likeness']:.2f} | "
        f"{found['translation_mm']:.0f} | {found['rotation_degrees']:.0f} | {found['scaling']:.2f} | |"
    )


def _laid(scan: tuple[str, Path]) -> dict[str, Any]:
    from client.data.anatomy import grid, preparation
    from client.data.anatomy.brain import brain_of
    from client.data.anatomy.registration import overlap, register
    from client.data.readers.nifti import read_header, read_voxels
    from common.errors import ScanError

    root, path = scan
    found: dict[str, Any] = {"scan": f"{root.rpartition('/')[2]}/{path.name.partition('_')[0]}"}
    header = read_header(path)
    plain, placed_at = grid.to_ras(read_voxels(header), header.affine)
    seen = preparation.Scan.seen(plain, placed_at, 2.0)
    try:
        brain = brain_of(seen.voxels, seen.affine, seen.head)
        placing = register(seen.voxels, seen.affine, brain)
    except ScanError as error:
        return {**found, "placing": None, "why": str(error)}
    derived = path.parents[2] / DERIVED.format(path.name.partition("_")[0])
    labels = None
    if derived.is_file():
        header = read_header(derived)
        parts, at = grid.to_ras(read_voxels(header), header.affine)
        labels = overlap(parts > 0, at, placing.affine)
    return {**found, "placing": placing, "labels": labels}


def _seconds(way: tuple[str, bool], scan: tuple[str, Path]) -> float:
    """Of one scan, in the one thread that prepares it; the template is read before."""
    from client.data.anatomy.template import template, tissue
    from client.data.reader import Source
    from client.data.readers.t1w import T1wReader
    from common.errors import ScanError
    from common.kinds.t1w import T1w

    for spacing_mm in (2.0, 4.0, 8.0):
        template(spacing_mm)
    tissue("gm", 4.0), tissue("wm", 4.0)
    study = T1w.Study.model_validate(
        {
            "kind": "t1w", "shape": (96, 112, 96), "spacing_mm": 2.0, "registration": way[0],
            "align": "centre" if way[0] == "none" else "world", "bias_correction": way[1],
        }
    )  # fmt: skip
    payload = {"path": str(scan[1]), "unsure": True}
    source = Source(participant="sub-01", scan=scan[1].name, stamp="", row={}, payload=payload)
    began = time.process_time()
    try:
        T1wReader.prepare(study, source)
    except ScanError:
        pass
    return time.process_time() - began
