"""Real runs of one person who looked at eight kinds of objects (Haxby et al. 2001), where present."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from client.data.functional.bold import BoldReader
from common.kinds.bold import Bold

HAXBY = Path(__file__).parents[4].parent / "shared" / "data" / "haxby_sub1"
OBJECTS = ("bottle", "cat", "chair", "face", "house", "scissors", "scrambledpix", "shoe")
pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(not HAXBY.is_dir(), reason=f"{HAXBY} is not there"),
]


@pytest.fixture(scope="module")
def blocks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of each block, its object, and its run; events as they are: the reference has no shift."""
    study = Bold.Study(
        kind="bold", shape=(44, 27, 1), spacing_mm=3.0, align="centre", sample="event",
        states={"object": OBJECTS}, shift_s=0.0,
    )  # fmt: skip
    site = Bold.Site(
        kind="bold", root=str(HAXBY), entities={"acq": "1slice"}, mask="mask_1slice.nii.gz"
    )
    found = BoldReader.find(study, site, HAXBY, frozenset({"object"}))
    assert {finding.what for finding in found.findings} == {"participants.tsv", "motion"}
    runs = [BoldReader.prepare(study, source) for source in found.sources]
    assert all(not run.notes for run in runs)
    samples = np.concatenate([run.samples.reshape(len(run.samples), -1) for run in runs])
    objects = np.concatenate([run.labels["object"] for run in runs])
    return samples.astype(np.float64), objects, np.repeat(np.arange(len(runs)), len(OBJECTS))


def left_out(x: np.ndarray, y: np.ndarray, runs: np.ndarray) -> float:
    """Accuracy by leave-one-run-out of a plain logistic regression.

    In coordinates of the blocks' own span, in which a penalty on lengths is the same: a tenth of
    the numbers.
    """
    right = []
    with threadpool_limits(1):  # threads that wait for each other take a hundred times as long
        x = x @ np.linalg.svd(x, full_matrices=False)[2].T
        for run in np.unique(runs):
            model = LogisticRegression(max_iter=500).fit(x[runs != run], y[runs != run])
            right.append(model.predict(x[runs == run]) == y[runs == run])
    return float(np.concatenate(right).mean())


def test_every_block_of_every_run_is_read(
    blocks: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Eight objects, once in each of the nine runs that are there."""
    x, objects, runs = blocks
    assert len(x) == 72
    assert all(sorted(objects[runs == run]) == sorted(OBJECTS) for run in range(9))


def test_a_linear_model_of_what_the_kind_gives_reaches_the_reference(
    blocks: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """0.656 of eight (chance 0.125) and 1.00 of face and house, on voxels as they were acquired."""
    x, objects, runs = blocks
    two = np.isin(objects, ("face", "house"))
    eight, pair = left_out(x, objects, runs), left_out(x[two], objects[two], runs[two])
    print(f"\nHaxby, each run left out: {eight:.3f} of eight objects, {pair:.2f} of face and house")
    assert eight >= 0.656
    assert pair == 1.0


def test_labels_of_another_block_decode_nothing(
    blocks: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """What the model reads is the object: with labels dealt anew within runs it knows nothing."""
    x, objects, runs = blocks
    random = np.random.default_rng(0)
    dealt = np.concatenate([random.permutation(objects[runs == run]) for run in np.unique(runs)])
    assert left_out(x, dealt, runs) < 0.3
