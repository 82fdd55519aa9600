"""Tables as programs write them: nothing that stands in a file is lost, joined or moved in silence."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.data.delimited import bare
from client.data.tables import Filtered, TextTable, open_table
from common.errors import DataError

ROOT = Path(__file__).parents[3]


def table(folder: Path, content: str | bytes, name: str = "t.tsv") -> TextTable:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_table(path)


def rows(found: TextTable) -> list[list[str]]:
    return [line.cells(range(len(found.columns))) for line in found if not line.fault]


def faults(found: TextTable) -> list[tuple[int, str]]:
    return [(line.number, line.fault) for line in found if line.fault]


def test_a_quotation_mark_in_a_tsv_joins_nothing(tmp_path: Path) -> None:
    """Twelve of thirty people vanished, and one got another's numbers."""
    text = 'id\tnote\tage\na\t"begins\t1\nb\tplain\t2\nc\tends"\t3\nd\t5" tall\t4\n'
    found = table(tmp_path, text)
    assert rows(found) == [
        ["a", '"begins', "1"], ["b", "plain", "2"], ["c", 'ends"', "3"], ["d", '5" tall', "4"],
    ]  # fmt: skip
    assert not faults(found)


def test_a_tsv_whose_cells_are_all_quoted_is_read(tmp_path: Path) -> None:
    """R writes so unless it is told not to."""
    found = table(tmp_path, '"id"\t"age"\n"a"\t"1"\n"b ""x"""\t2\n')
    assert found.columns == ("id", "age")
    assert rows(found) == [["a", "1"], ['b "x"', "2"]]


def test_a_row_of_a_csv_that_spans_lines_is_named_and_its_neighbours_stay(tmp_path: Path) -> None:
    """Nobody meant three people to be one cell; the fourth is sound."""
    found = table(tmp_path, 'id,note,age\na,"x,1\nb,y,2\nc,z",3\nd,"q, r",4\n', "t.csv")
    assert rows(found) == [["d", "q, r", "4"]]
    ((line, fault),) = faults(found)
    assert line == 2
    assert "closes in line 4, so that 3 lines are one row" in fault


def test_a_quotation_mark_amid_a_cell_costs_one_row(tmp_path: Path) -> None:
    """The rest of the file is as good as before."""
    found = table(tmp_path, 'id,note,age\na,"x"y,1\nb,5" tall,2\n', "t.csv")
    assert rows(found) == [["b", '5" tall', "2"]]
    assert faults(found)[0][0] == 2


def test_a_cell_that_never_ends_ends_the_table(tmp_path: Path) -> None:
    """What was read before it is kept by whoever reads; what follows cannot be told."""
    with pytest.raises(DataError, match=r"t\.csv, line 3: a quotation mark opens a cell that does"):
        rows(table(tmp_path, 'id,age\na,1\n"b,2\nc,3\n', "t.csv"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sep=;\nid;age\na;1\n", 'begins with the line "sep=;"'),
        ('"sep=,"\nid,age\n', 'begins with the line "sep=,"'),
        ("id\tage\na\t1\n".encode("utf-16"), 'UTF-16, as Excel writes "Unicode text"'),
        ("id\tage\nM\xfcller\t1\n".encode("latin-1"), "holds the byte 0xFC"),
        ("id\tage\na\t1\n".encode("utf-16-le"), "is not text"),
    ],
    ids=["sep", "quoted sep", "utf-16", "latin-1", "no byte order mark"],
)
def test_what_excel_writes_is_refused_by_its_name(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    """Labels were lost without a word; the remedy is one click in the program that wrote it."""
    with pytest.raises(DataError, match=re.escape(said)):
        rows(table(tmp_path, content))


@pytest.mark.parametrize("content", [",,\n", ",,\nid,age\na,1\n", '"",""\nid,age\n', ";\n\n"])
def test_a_first_line_without_names_is_no_header(tmp_path: Path, content: str) -> None:
    """The next line is somebody's row, and would be taken for the names."""
    with pytest.raises(DataError, match=r"line 1: no names; a header line is needed"):
        table(tmp_path, content, "t.csv")


def test_a_mark_that_goes_wrong_below_its_line_costs_the_lines_that_it_joins(
    tmp_path: Path,
) -> None:
    """What comes after them is sound."""
    found = table(tmp_path, 'id,note,age\na,"x,1\nb,y" z,2\nc,q,3\n', "t.csv")
    assert rows(found) == [["c", "q", "3"]]
    ((line, fault),) = faults(found)
    assert line == 2
    assert "so that 2 lines are one row" in fault


def test_a_row_filter_that_matches_nothing_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    """NYU and nyu are two entries to a computer."""
    found = table(tmp_path, "id\tsite\na\tNYU\nb\tUCLA\n")
    for wanted, said in (("nyu", 'did you mean "NYU"?'), ("CMU", "there are: NYU, UCLA")):
        filtered = Filtered({1: wanted}, found.columns)
        assert not any(map(filtered.passes, found))
        (finding,) = filtered.findings("t.tsv")
        assert finding.error
        assert said in finding.problem


def test_two_spellings_of_a_wanted_entry_are_both_named(tmp_path: Path) -> None:
    """Half of a site's people would be missing, and which half a matter of taste."""
    found = table(tmp_path, "id\tsite\na\tNYU\nb\tnyu\nc\t1\n")
    filtered = Filtered({1: "NYU"}, found.columns)
    assert [line[0] for line in found if filtered.passes(line)] == ["a"]
    (finding,) = filtered.findings("t.tsv")
    assert finding.error
    assert '"nyu"' in finding.problem


def test_a_wide_table_takes_the_memory_of_its_used_columns(tmp_path: Path) -> None:
    """Ten thousand columns, of which one is used, took gigabytes."""
    width = 10_000
    names = "\t".join(f"c{n}" for n in range(width))
    line = "\t".join("0.125" for _ in range(width))
    (tmp_path / "t.tsv").write_text(
        f"participant_id\t{names}\n" + "".join(f"p{n:03d}x\t{line}\n" for n in range(400))
    )
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from client.data.readers.features import FeaturesReader\n"
        "from common.kinds.features import Features\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "study = Features.Study(kind='features', columns=('c7',))\n"
        "site = Features.Site(kind='features', table='t.tsv')\n"
        "before = peak()\n"
        "found = FeaturesReader.find(study, site, Path(sys.argv[1]), frozenset({'c9'}))\n"
        "print(len(found.sources), peak() - before)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=ROOT,
    )  # fmt: skip
    count, kilobytes = map(int, ran.stdout.split())
    assert count == 400
    assert kilobytes < 20_000


@given(st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n\0"), max_size=12))
def test_a_cell_is_what_stands_between_its_marks(text: str) -> None:
    """However a program writes it, quoted or not."""
    quoted = '"' + text.replace('"', '""') + '"'
    assert bare(quoted) == text.strip()
    if '"' not in text:
        assert bare(text) == text.strip()


# --- tables that are generated ------------------------------------------------------------------

CELL = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=6),
    st.sampled_from(
        ['"', '""', '"a', 'a"', 'a"b', '"a"', "39,5", "1;2", "n/a", "", " x ", "\u00a0"]
    ),
)


@st.composite
def written(draw: Any) -> tuple[bytes, str, list[list[str]], str]:
    """A table as some program writes it, its delimiter, its cells, and how it was written."""
    width = draw(st.integers(2, 5))
    cells = draw(st.lists(st.lists(CELL, min_size=width, max_size=width), max_size=8))
    cells = [[f"p{n}", *row[1:-1], f"end{n}"] for n, row in enumerate(cells)]
    header = [f"column {n}" for n in range(width)]
    delimiter = draw(st.sampled_from("\t;,"))
    how = draw(st.sampled_from(("as RFC 4180", "all quoted", "as it is")))
    end = draw(st.sampled_from(("\n", "\r\n", "\r")))
    stream = io.StringIO()
    if how == "as it is":  # as a script writes it: nothing is quoted, whatever the cells hold
        for row in (header, *cells):
            stream.write(delimiter.join(row) + end)
    else:
        quoting = csv.QUOTE_ALL if how == "all quoted" else csv.QUOTE_MINIMAL
        csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(
            (header, *cells)
        )
    encoding = draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "latin-1")))
    return stream.getvalue().encode(encoding, "replace"), delimiter, cells, how


def nothing_is_lost(folder: Path, made: tuple[bytes, str, list[list[str]], str]) -> None:
    """Every row is read as it was meant, or named; or the file is refused."""
    content, delimiter, cells, how = made
    try:
        found = table(folder, content, "t.tsv" if delimiter == "\t" else "t.csv")
        lines = list(found)
    except DataError as refused:
        assert "t." in str(refused)
        return
    width = len(found.columns)
    accounted = 0
    for line in lines:
        if line.fault:
            spans = re.search(r"so that (\d+) lines are one row", line.fault)
            accounted += int(spans[1]) if spans else 1
            continue
        accounted += 1
        got = line.cells(range(width))
        meant = cells[int(got[0][1:])]
        assert got[-1] == meant[-1], "cells of two rows"
        assert got[0] == meant[0]
        if b"?" in content:  # letters that Latin-1 lacks
            continue
        if how != "as it is":
            assert got == [cell.strip() for cell in meant]
        elif delimiter == "\t":
            assert got == [bare(cell) for cell in meant]
    assert accounted == len(cells)


quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(made=written())
def test_no_row_of_any_table_is_lost(tmp_path: Path, made: Any) -> None:
    """Each is read whole or named with its line, whatever wrote it."""
    nothing_is_lost(tmp_path, made)


@pytest.mark.slow
@settings(
    max_examples=2500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(made=written())
def test_no_row_of_thousands_of_tables_is_lost(tmp_path: Path, made: Any) -> None:
    """The same of 2,500 tables."""
    nothing_is_lost(tmp_path, made)
