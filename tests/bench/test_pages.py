"""A page of very many sites stays small, and says what it does not show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.report.page import write_report
from tests.bench.pages import large_run

pytestmark = pytest.mark.whole


def test_very_many_sites_are_rows_with_their_paired_differences(tmp_path: Path) -> None:
    """A table for each site and target would be 28 MB and minutes for two hundred."""
    run, _ = large_run(tmp_path, 70, 2)
    text = write_report(run).read_text()
    assert len(text) < 1_000_000
    assert "every model at every site stands in <code>results.csv</code>" in text
    [table] = re.findall(r'<table data-by-site="target-0">.*?</table>', text, re.DOTALL)
    assert len(re.findall(r"<tr><th scope=\"row\">(?:judge-\d+|all held-out)", table)) == 71
    row = next(line for line in table.splitlines() if "judge-069" in line)
    assert len(re.findall(r"\(.*?\), p [^;]*; ", row)) == 4


def test_differences_of_very_many_sites_are_counted(tmp_path: Path) -> None:
    """Seventy columns nobody reads; at how many sites a way was better is one sentence."""
    run, _ = large_run(tmp_path, 70, 2)
    text = write_report(run).read_text()
    [table] = re.findall(r'<table data-paired="own">.*?</table>', text, re.DOTALL)
    assert "At how many sites" in table
    for line in re.findall(r"<td>((?:[^<:]+: \d+(?:, )?)+)</td>", table):
        assert sum(int(n) for n in re.findall(r": (\d+)", line)) == 70
    assert table.count("<tr>") == 1 + 15


def test_very_many_sites_are_drawn_in_the_order_of_their_values(tmp_path: Path) -> None:
    """Seventy rows by name hide who is worst; all together stand above."""
    run, _ = large_run(tmp_path, 130, 2)
    [drawn] = re.findall(r'<figure id="forest-0">.*?</figure>', write_report(run).read_text(),
                         re.DOTALL)  # fmt: skip
    across = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert len(across) == 130
    assert across == sorted(across)
