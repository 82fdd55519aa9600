"""Medians, differences and sentences follow from the rows, whichever way they point."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from deploy.protocols.findings import (
    FEW_SHOT,
    INSIDE,
    RIVAL,
    ZERO_SHOT,
    Row,
    Spread,
    contrasts,
    sentences,
    write_rows,
)
from deploy.protocols.page import Outcome, format_protocol, write_page
from deploy.protocols.protocol import load_protocol


def row(source: str, seed: int, value: float, **more: Any) -> Row:
    told = {
        "task": "ad", "architecture": "sfcn", "share": 1.0, "measured": ZERO_SHOT,
        "model": "federated", "metric": "auc", **more,
    }  # fmt: skip
    return Row(cell=f"{source}-{seed}", initialisation=source, seed=seed, value=value, **told)


AUC = [
    row("scratch", 1, 0.6), row("scratch", 2, 0.7), row("scratch", 3, 0.65),
    row("video", 1, 0.7), row("video", 2, 0.75), row("video", 3, 0.7),
    row("masked", 1, 0.5), row("masked", 2, 0.6), row("masked", 3, 0.6),
    row("simclr", 1, 0.7), row("simclr", 2, 0.6), row("simclr", 3, 0.65),
]  # fmt: skip


def test_differences_are_taken_on_the_same_seed() -> None:
    """Seeds differ by more than beginnings do: unpaired, the noise of seeds would hide everything."""
    found = {one.initialisation: one for one in contrasts(AUC)}
    assert found.keys() == {"video", "masked", "simclr"}
    assert found["video"].differences.values == pytest.approx((0.1, 0.05, 0.05))
    assert [(one.verdict, one.gains) for one in found.values()] == [
        ("better", 3), ("worse", 0), ("undecided", 1),
    ]  # fmt: skip


def test_a_lower_error_is_better() -> None:
    """Years of error and areas under a curve point in opposite directions."""
    rows = [
        row(source, seed, value, task="age", metric="mae")
        for seed in (1, 2)
        for source, value in (("scratch", 9.0), ("video", 8.0), ("masked", 10.0))
    ]
    assert [one.verdict for one in contrasts(rows)] == ["better", "worse"]


def test_a_seed_without_its_like_from_scratch_is_not_compared() -> None:
    """A cell that failed takes its pair along, and is no zero."""
    found = contrasts([*AUC[1:], row("video", 1, 0.9, share=0.1)])
    assert [len(one.differences.values) for one in found] == [2, 2, 2]


def test_what_does_not_help_is_said_beside_what_does() -> None:
    """Negative findings are findings."""
    text = "\n".join(sentences(AUC))
    assert "compared 3 times" in text
    assert "1 better, 1 worse, 1 undecided" in text
    assert "better on every seed from video at 100% (+0.050)" in text
    assert "worse on every seed from masked at 100% (\N{MINUS SIGN}0.100)" in text
    assert "; the other 1 undecided." in text
    assert "3 would agree in 25% of comparisons" in text  # 2 of 8 outcomes of three coins


def test_one_seed_is_said_to_decide_nothing() -> None:
    """One coin always agrees with itself."""
    text = sentences([one for one in AUC if one.seed == 1])[0]
    assert "over 1 seed: 0 better, 0 worse, 3 undecided" in text
    assert "two at least" in text


@pytest.mark.parametrize(("linear", "words"), [(0.9, "does not reach"), (0.6, "is ahead of")])
def test_the_strongest_simple_rival_is_named(linear: float, words: str) -> None:
    """A network that a linear model beats has no place in a hospital, however it was pretrained."""
    rivals = [
        row("scratch", seed, linear, measured=RIVAL, model="site-linear") for seed in (1, 2, 3)
    ]
    said = sentences([*AUC, *rivals])[-1]
    assert f"sfcn from video (0.700), {words} a linear model of regional volumes" in said


def test_nothing_finished_is_said_and_no_error() -> None:
    """The page of a protocol that has just begun."""
    assert sentences([]) == [
        "No pretrained network and its like from scratch are both finished yet."
    ]


def test_a_range_is_of_all_seeds_and_none_of_one() -> None:
    """A range of one value would look like certainty."""
    assert Spread(values=(0.5, 0.7, 0.6)).in_words(2) == "0.60 (0.50 to 0.70)"
    assert Spread(values=(0.5,)).in_words(2) == "0.50"


def test_rows_come_back_from_cells_csv(tmp_path: Path) -> None:
    """A statistician reads this file, not the page."""
    write_rows(tmp_path / "cells.csv", AUC)
    found = list(csv.DictReader((tmp_path / "cells.csv").open()))
    assert [(one["initialisation"], float(one["value"])) for one in found] == [
        (one.initialisation, one.value) for one in AUC
    ]
    assert found[0]["ci_low"] == ""


def test_page_and_table_show_every_cell_and_name_what_failed(
    protocol_file: Any, tmp_path: Path
) -> None:
    """Nothing is loaded from elsewhere, what others wrote is escaped, gaps are gaps."""
    sources = ["scratch", "video", "simclr", "masked"]
    protocol = load_protocol(
        protocol_file(tasks=["ad"], initialisations=sources, seeds=[1, 2, 3]), small=False
    )
    rows = [*AUC, row("video", 1, 0.8, measured=INSIDE), row("video", 1, 0.8, measured=FEW_SHOT)]
    found = Outcome(
        protocol=protocol, rows=tuple(rows), finished=12, waiting=("ad-late",),
        failed={"ad-bad": "<script>alert(1)</script>"},
    )  # fmt: skip
    page = write_page(tmp_path, found).read_text()
    assert "<script" not in page
    assert "&lt;script" in page
    assert "0.650 (0.600 to 0.700)" in page
    assert "+0.050 (3 of 3)" in page
    assert "\N{MINUS SIGN}0.100 (0 of 3)" in page
    assert page.count("<svg viewBox") >= 3
    assert "ad-late" in page
    assert "http" not in page.replace("http-equiv", "")
    again = write_page(tmp_path, found).read_text()
    assert again == page
    text = format_protocol(found)
    assert "failed: ad-bad" in text
    assert "0.650 (0.600 to 0.700)" in text
