"""What an audit says on the page: bounds beside promises, and a promise that broke first."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import DamagedError
from server.report.audit import Audit, Line, read_audit, tables, write_audit

BOUND = Line(
    part="mechanism", model="private rounds as at amber", attack="every sum watched",
    metric="epsilon", value=2.5, accounted=4.0, delta=1e-3, n=1000,
)  # fmt: skip
AUC = Line(
    part="membership", model="6 shadows", attack="likelihood ratio", metric="AUC", value=0.512,
    ci_low=0.49, ci_high=0.53, n=600,
)  # fmt: skip


def audit(*lines: Line, private: bool = True) -> Audit:
    return Audit(confidence=0.95, setting="0", private=private, people="nobody", lines=lines)


def test_a_bound_below_the_promise_proves_nothing_and_says_so() -> None:
    """Whoever reads the lower bound as the loss of privacy is told better."""
    found = audit(AUC, BOUND)
    assert found.broken == ()
    assert "at least 2.50" in found.verdict
    assert "at most 4.00" in found.verdict
    assert "proves no safety" in found.verdict


def test_a_bound_above_the_promise_is_told_first() -> None:
    """Whatever the other attacks found."""
    broken = BOUND.model_copy(update={"value": 4.1, "attack": "another"})
    found = audit(BOUND, broken)
    assert found.broken == (broken,)
    assert found.verdict.startswith("The claim does not hold: epsilon is at least 4.10 (another)")


def test_without_a_promise_none_is_broken() -> None:
    """A run without privacy has figures, and no verdict on a claim."""
    unbound = BOUND.model_copy(update={"accounted": None, "delta": None, "value": 9.0})
    found = audit(unbound, private=False)
    assert found.broken == ()
    assert "Nothing was promised" in found.verdict


def test_a_promise_that_nobody_tried_is_no_promise_that_held() -> None:
    """Inversion alone, or an audit whose minutes were over before any bound."""
    assert "stands untried" in audit(AUC).verdict
    assert "stands untried" in audit().verdict


def test_a_table_has_a_row_an_attack_and_a_column_a_figure() -> None:
    """At least, at most, and the delta that both are at; no empty column of promises."""
    more = AUC.model_copy(update={"attack": "threshold", "metric": "hits", "n": 50})
    first, second = tables(audit(BOUND, AUC, more))
    assert first.columns == ("attack", "epsilon", "accounted", "of")
    assert first.rows == (
        ("every sum watched", "at least 2.50", "at most 4.00 (delta 0.001)", "1,000"),
    )
    assert second.columns == ("attack", "AUC", "hits", "of")
    assert second.rows == (
        ("likelihood ratio", "0.512 (0.49 to 0.53)", "", "600"),
        ("threshold", "", "0.512 (0.49 to 0.53)", "50"),
    )


def test_of_bounds_at_several_deltas_the_nearest_to_its_promise_is_told() -> None:
    """A larger number at a smaller delta is no stronger attack."""
    small = BOUND.model_copy(update={"value": 3.0, "accounted": 9.0, "delta": 1e-6})
    assert "at least 2.50" in audit(small, BOUND).verdict


def test_tables_are_written_and_read_again(tmp_path: Path) -> None:
    """A table for people, and a sealed one for the page."""
    found = audit(BOUND, AUC)
    path = write_audit(tmp_path, found)
    assert read_audit(tmp_path) == found
    head, first, *_ = path.read_text().splitlines()
    assert head.startswith("part,model,attack,metric,value")
    assert first.startswith("mechanism,private rounds as at amber,every sum watched,epsilon,2.5")


def test_nobody_looked_is_no_finding_and_a_forged_one_is_refused(tmp_path: Path) -> None:
    """A lower bound that somebody made smaller by hand is no longer what was written."""
    assert read_audit(tmp_path) is None
    write_audit(tmp_path, audit(BOUND))
    path = tmp_path / "audit.json"
    path.write_text(path.read_text().replace("2.5", "0.5"))
    with pytest.raises(DamagedError):
        read_audit(tmp_path)
