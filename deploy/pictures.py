"""What a report may show of scans: synthetic ones, and what a network has learnt to see in them.

A real scan is never shown, whoever asks: the data set itself must name the generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.cohort import Cohort, open_cohort
from client.data.loading import Batch, Loader, batches
from client.learning.prediction import reestimate_statistics
from client.learning.training import choose_device, lay_out, seeded
from client.site import Site
from common.network.buildable import augmentations
from common.network.building import build, load_arrays, views_of
from common.protocol.bounded_json import parsed
from common.protocol.wire import Stored
from common.study import Study, with_plugins
from deploy.hospitals.sources import KINDS
from deploy.local import find_sites
from server.report.page import Picture
from server.run import Run

_MOST: Final = 3  # sites whose scans are shown
_COMPARED: Final = 8  # scans whose views are compared with each other
_SEED: Final = 0  # of the masks and views that are shown


def scans(study: Study, folder: Path) -> list[Picture]:
    """Three slices of one scan of each of the first synthetic sites."""
    found = []
    for site, cohort in _synthetic(study, folder):
        volume = np.asarray(cohort.samples[0], dtype=np.float32)
        middle = [length // 2 for length in volume.shape]
        slices = tuple(volume.take(middle[axis], axis=axis) for axis in range(3))
        found.append(Picture(site=site.name, caption="a synthetic participant", slices=slices))
    return found


def learnt(run: Run, folder: Path) -> list[Picture]:
    """What the run's network makes of hidden voxels, or which views it holds to be of one scan.

    Nothing for objectives without `reconstruct` and `similarity`, or before the run has ended.
    """
    study, final = with_plugins(run.study), run.federated.final
    if not final.exists():
        return []
    network = build(study, seed=0)
    if not hasattr(network, "reconstruct") and not hasattr(network, "similarity"):
        return []
    load_arrays(network, Stored(final, "model/"))
    return [_picture(study, site, cohort, network) for site, cohort in _synthetic(study, folder)]


def _synthetic(study: Study, folder: Path) -> Iterator[tuple[Site, Cohort]]:
    """The first sites whose data set says that it is synthetic, with their samples."""
    if study.layout != "volume":
        return
    found = 0
    for site in find_sites(study, folder):
        if found == _MOST or not _is_synthetic(study, site):
            continue
        cohort = open_cohort(study, site)
        if len(cohort):
            found += 1
            yield site, cohort


def _picture(study: Study, site: Site, cohort: Cohort, network: Any) -> Picture:
    device = choose_device("cpu")
    lay_out(network, device)
    if study.aggregation.normalisation == "silobn":
        reestimate_statistics(network, cohort, np.arange(len(cohort)), device)
    network.eval()
    chosen = np.unique(cohort.participants, return_index=True)[1][:_COMPARED]
    loader = Loader(augmentations(study), _SEED, views=views_of(network))
    (batch,) = batches(cohort, [chosen], device, loader)
    with torch.inference_mode(), seeded(_SEED, device):
        return (
            _filled(site, network, batch)
            if hasattr(network, "reconstruct")
            else _alike(site, network, batch)
        )


def _filled(site: Site, network: Any, batch: Batch) -> Picture:
    """One slice: what was shown, what was made of it, and what it is."""
    shown, made = network.reconstruct(batch.x[:1])
    middle = batch.x.shape[3] // 2
    parts = (shown[0, :, :, middle], made[0, :, :, middle], batch.x[0, :, :, middle])
    return Picture(
        site=site.name,
        caption="a synthetic participant: what the network was shown, what it made of that, and "
        "the scan",
        slices=tuple(_array(part) for part in parts),
    )


def _alike(site: Site, network: Any, batch: Batch) -> Picture:
    """(2 B, 2 B): rows and columns are first views of each scan, then second ones."""
    return Picture(
        site=site.name,
        caption=f"similarity of two views of each of {len(batch.x)} synthetic participants: first "
        "views, then second ones; the two bright lines beside the middle one are pairs",
        slices=(_array(network.similarity(batch.x)),),
    )


def _array(part: torch.Tensor) -> NDArray[np.float32]:
    return part.float().numpy()


def _is_synthetic(study: Study, site: Site) -> bool:
    if study.kind_name in KINDS:
        return True
    root = getattr(site.data, "root", None)
    try:
        text = (site.root / str(root) / "dataset_description.json").read_text()
        made_by = [entry.get("Name") for entry in parsed(text).get("GeneratedBy", [])]
    except (OSError, ValueError, AttributeError):
        return False
    return "callosum hospitals" in made_by
