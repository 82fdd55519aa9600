"""Confounds tables as fMRIPrep writes them, and as they are damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from client.data.functional.confounds import Confounds, read_confounds
from common.errors import ScanError
from tests.client.data.functional.runs import write_table

MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


def read(
    folder: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    wanted: tuple[str, ...] = (),
) -> Confounds:
    path = folder / "sub-01_desc-confounds_timeseries.tsv"
    write_table(path, header, rows)
    return read_confounds(path, folder, wanted, 3)


def test_na_in_the_first_row_takes_the_second_entry_and_is_told(tmp_path: Path) -> None:
    """Differences between volumes begin so in every table of fMRIPrep's."""
    found = read(
        tmp_path, ("csf", "csf_derivative1", "framewise_displacement"),
        [(1, "n/a", "n/a"), (2, 1.5, 0.2), (3, 0.5, 0.4)], ("csf", "csf_derivative1"),
    )  # fmt: skip
    assert found.columns.tolist() == [[1, 1.5], [2, 1.5], [3, 0.5]]
    assert found.notes == ("csf_derivative1 begin with n/a and take their second entry",)
    assert found.displacement_mm is not None
    assert found.displacement_mm.tolist() == [0, 0.2, 0.4]


def test_na_further_down_leaves_the_run_out_by_line_and_column(tmp_path: Path) -> None:
    """Nobody can say what was there."""
    with pytest.raises(ScanError, match=r'"n/a" for csf in line 3; a number is needed'):
        read(tmp_path, ("csf",), [(1,), ("n/a",), (3,)], ("csf",))


def test_a_table_of_another_length_is_another_runs(tmp_path: Path) -> None:
    """Rows are volumes: one less, and all of them are shifted."""
    with pytest.raises(ScanError, match="has 2 rows; the run has 3 volumes"):
        read(tmp_path, ("csf",), [(1,), (2,)], ("csf",))


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    """fMRIPrep renamed its columns twice."""
    with pytest.raises(ScanError, match='no column "CSF"; did you mean "csf"'):
        read(tmp_path, ("csf",), [(1,), (2,), (3,)], ("CSF",))


def test_displacement_is_made_of_motion_where_the_table_has_none(tmp_path: Path) -> None:
    """Power et al. 2012: millimetres, and turns on a sphere of 50 mm."""
    rows = [(0, 0, 0, 0, 0, 0), (0.1, -0.2, 0, 0.01, 0, 0), (0.1, -0.2, 0.3, 0.01, 0, 0)]
    found = read(tmp_path, MOTION, rows)
    assert found.displacement_mm is not None
    np.testing.assert_allclose(found.displacement_mm, [0, 0.8, 0.3])
    assert found.columns.shape == (3, 0)


def test_a_table_without_motion_says_nothing_of_it(tmp_path: Path) -> None:
    """Unknown is not zero, and a limit that cannot hold is told."""
    found = read(tmp_path, ("csf",), [(1,), (2,), (3,)])
    assert found.displacement_mm is None
    assert found.notes == ("its confounds table tells no motion, and no limit on it holds",)


def test_a_table_longer_than_the_run_is_not_read_on(tmp_path: Path) -> None:
    """Rows of another run, or a file without end."""
    with pytest.raises(ScanError, match="more rows than the run's 3 volumes"):
        read(tmp_path, ("csf",), [(1,)] * 5, ("csf",))
