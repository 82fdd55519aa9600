"""What the sites hold, as the coordinator may know it: counts and sums, never anyone's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from common import metrics
from common.arrays import Arrays
from common.protocol.orders import Report
from common.protocol.wire import open_arrays
from common.study import Study

POOLED: Final = "pooled"  # all training data in one place, where the coordinator holds them


def summarise(
    study: Study, reports: Mapping[str, Report], refused: Mapping[str, str]
) -> dict[str, Any]:
    """Each site's role and counts, or the code of its refusal, for `census.json`."""
    lines: dict[str, Any] = {}
    for site in [*study.sites.train, *study.sites.heldout]:
        role = "train" if site in study.sites.train else "heldout"
        report = reports.get(site)
        held = dict(sorted(report.support.items())) if report else {}
        lines[site] = {"role": role, "refused": refused.get(site, ""), "held": held}
    return lines


def constants(study: Study, reports: Sequence[Report]) -> dict[str, float]:
    """Mean label of every target over the training sites: the model that knows nothing.

    For a binary target it is the share of positives, for a regression target the mean.
    """
    found = {}
    merged = metrics.merged((report.counts for report in reports), "label/")
    for name, (n, total, *_) in merged.items():
        if name in study.targets and n:
            found[name] = float(total / n)
    return found


def standardised(arrays: Arrays, reports: Sequence[Report], folder: Path) -> Arrays:
    """Set a table backbone's column mean and deviation from the training sites' sums.

    Sums come from training participants of the sites that train this model and from nobody else;
    a column that does not vary keeps deviation 1.
    """
    names = [name for name in arrays if name.endswith("standardise.mean")]
    if not names:
        return arrays
    total, squares, n = _sums(reports, folder)
    mean = total / n
    variance = np.maximum(squares / n - mean**2, 0)
    deviation = np.sqrt(variance)
    deviation[deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-12)] = 1.0
    place = names[0].removesuffix("mean")
    return {
        **arrays,
        f"{place}mean": mean.astype(np.float32),
        f"{place}deviation": deviation.astype(np.float32),
    }


def _sums(reports: Sequence[Report], folder: Path) -> tuple[Any, Any, float]:
    total: Any = 0.0
    squares: Any = 0.0
    n = 0.0
    for report in sorted(reports, key=lambda report: report.site):
        with open_arrays(folder / f"{report.site}.safetensors") as file:
            total = total + file["columns/sum"]
            squares = squares + file["columns/squares"]
            n += float(file["columns/n"][0])
    return total, squares, n
