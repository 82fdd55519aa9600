"""The time between volumes, whoever says it and in whatever unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.data.functional.repetition_time import agreed_repetition_time, read_side_file
from common.errors import ScanError


@pytest.mark.parametrize(
    ("header", "side", "seconds", "told"),
    [
        (2.5, 2.5, 2.5, ""),
        (2.5, None, 2.5, ""),
        (2.5, 2.504, 2.5, ""),
        (2.5, 2500.0, 2.5, "the file beside it says RepetitionTime 2500, in milliseconds"),
        (2500.0, 2.5, 2.5, "its header says a repetition time of 2500, in milliseconds"),
        (2500.0, None, 2.5, "its header says a repetition time of 2500, in milliseconds"),
        (0.0, 2.5, 2.5, "its header says no repetition time; 2.5 s of the file beside it"),
        (2.5, 0.0, 2.5, "the file beside it says RepetitionTime 0; the header's 2.5 s are used"),
    ],
)
def test_header_and_side_file_agree_or_are_mended_in_words(
    header: float, side: float | None, seconds: float, told: str
) -> None:
    """Milliseconds written as seconds are the commonest fault of all."""
    found, notes = agreed_repetition_time(header, side)
    assert found == seconds
    assert told in "; ".join(notes)
    assert bool(notes) == bool(told)


@pytest.mark.parametrize(
    ("header", "side", "told"),
    [
        (2.5, 2.0, "2.5 s, the file beside it 2 s; which volume shows what hangs on it"),
        (1.0, 2500.0, "1 s, the file beside it 2.5 s"),
        (0.0, None, "0 s, no file beside it says it; 0.05 to 20 s are needed"),
        (0.0, float("nan"), "0.05 to 20 s are needed"),
        (1e9, 1e9, "0.05 to 20 s are needed"),
    ],
)
def test_what_nobody_can_know_leaves_the_run_out(
    header: float, side: float | None, told: str
) -> None:
    """A guess would shift every label."""
    with pytest.raises(ScanError, match=told):
        agreed_repetition_time(header, side)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be used"),
        ('{"RepetitionTime": "2.5"}', "says RepetitionTime 2.5; seconds are needed"),
        ('{"RepetitionTime": 1' + "0" * 400 + "}", "seconds are needed"),
        ('{"RepetitionTime": true}', "says RepetitionTime True"),
        ("[" * 100_000, "cannot be used"),
    ],
)
def test_a_side_file_that_says_no_number_is_named(tmp_path: Path, text: str, told: str) -> None:
    """It is one opinion less, not a stop."""
    path = tmp_path / "task-hands_bold.json"
    path.write_text(text)
    said, problem = read_side_file(path)
    assert said is None
    assert path.name in problem
    assert told in problem
