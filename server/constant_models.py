"""Mean and median of the training labels, as models: from sites' sums in a run, or as released."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import label_sums
from common.protocol.wire import Stored, write_arrays
from server.run import Run

RELEASED: Final = "constants.safetensors"

Constants = dict[str, dict[str, NDArray[np.float64]]]


def labels_of(run: Run) -> Path:
    """Where sites' sums of labels are."""
    return run.folder / "labels"


def constants_of(run: Run) -> Constants:
    """For each constant model its value by target, as far as sites have told."""
    parts = [Stored(path) for path in sorted(labels_of(run).glob("*.safetensors"))]
    if parts:
        return label_sums.constants_of(run.study, parts)
    found: Constants = {}
    if (run.folder / RELEASED).exists():
        for name, value in Stored(run.folder / RELEASED).check().items():
            model, _, key = name.partition(":")
            found.setdefault(model, {})[key] = value
    return found


def release_constants(run: Run, folder: Path) -> None:
    """Put them into a release: of all sites together, never one site's sums."""
    values = {
        f"{model}:{key}": value
        for model, by_target in constants_of(run).items()
        for key, value in by_target.items()
    }
    if values:
        write_arrays(folder / RELEASED, values, {})
