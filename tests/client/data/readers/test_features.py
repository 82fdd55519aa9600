"""Tables of regional measures become samples; whatever is wrong with them is told by name."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from client.data.reader import Found
from client.data.readers.features import FeaturesReader
from client.data.tables import open_table, plain
from common.errors import DataError
from common.kinds.features import Features

SHARED = Path(__file__).parents[4].parent / "shared" / "data"
STUDY = Features.Study(kind="features", columns=("thickness", "volume"))
HEADER = "participant_id,age,thickness,volume\n"


def find(folder: Path, text: str | bytes, name: str = "t.csv", **keys: Any) -> Found:
    content = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(content)
    site = Features.Site(kind="features", table=name, **keys)
    return FeaturesReader.find(STUDY, site, folder, frozenset({"age", "participant_id"}))


def samples(found: Found) -> list[list[float]]:
    return [FeaturesReader.prepare(STUDY, source).samples[0].tolist() for source in found.sources]


def test_columns_come_in_the_order_of_the_study(tmp_path: Path) -> None:
    """Sites order their columns as they like; a network's first input means one thing."""
    found = find(tmp_path, "volume,participant_id,thickness,age\n900,a,2.5,40\n")
    prepared = FeaturesReader.prepare(STUDY, found.sources[0])
    assert prepared.samples.tolist() == [[2.5, 900.0]]
    assert prepared.samples.dtype == np.dtype(Features.dtype)
    assert prepared.samples.shape[1:] == Features.shape(STUDY)
    assert found.sources[0].row == {"participant_id": "a", "age": "40"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("packed", [False, True])
def test_any_delimiter_bom_line_end_and_gzip_read_alike(
    tmp_path: Path, delimiter: str, packed: bool
) -> None:
    """Spreadsheets in different countries write all of these."""
    text = HEADER + 'a,40,2.5,900\n"b",41,2.6,901,,\n\n'
    content = ("\ufeff" + text.replace(",", delimiter).replace("\n", "\r\n")).encode()
    found = find(tmp_path, gzip.compress(content) if packed else content)
    assert samples(found) == [[2.5, 900.0], [pytest.approx(2.6), 901.0]]
    assert not found.findings


def test_only_the_sites_rows_are_read_and_codes_match_as_numbers(tmp_path: Path) -> None:
    """One table often holds many scanners, numbered 1 here and 1.0 there."""
    text = "participant_id,scanner,thickness,volume\na,1.0,1,1\nb,2,2,2\nc,01,3,3\n"
    found = find(tmp_path, text, rows={"scanner": "1"})
    assert [source.participant for source in found.sources] == ["a", "c"]


@pytest.mark.parametrize("cell", ["", "n/a", "inf", "nan", "1e999", "2,5", "1_0", "thick"])
def test_a_row_without_a_number_is_left_out_and_named(tmp_path: Path, cell: str) -> None:
    """No value is invented for a missing measure, and none trains as NaN."""
    text = f'{HEADER}a,40,"{cell}",900\nb,41,2.5,901\n'
    found = find(tmp_path, text)
    assert [source.participant for source in found.sources] == ["b"]
    (finding,) = found.findings
    assert finding.left_out
    assert "line 2" in finding.what
    assert '"thickness"' in finding.problem


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    """A typing mistake in one site file would otherwise cost an afternoon."""
    with pytest.raises(DataError, match=r'no column "thickness"; did you mean "Thicknes"\?'):
        find(tmp_path, "participant_id,Thicknes,volume\na,1,2\n")
    with pytest.raises(DataError, match=r'more than one column "volume"'):
        find(tmp_path, "participant_id,thickness,volume,volume\na,1,2,3\n")
    with pytest.raises(DataError, match=r'no column "scanner"'):
        find(tmp_path, HEADER, rows={"scanner": "1"})


def test_a_site_can_rename_its_columns(tmp_path: Path) -> None:
    """The study's names bind; the site's table stays as it is."""
    text = "ID,mm,volume\na,2.5,9\n"
    found = find(tmp_path, text, participant="ID", rename={"thickness": "mm"})
    assert samples(found) == [[2.5, 9.0]]


def test_repeated_rows_are_found_and_differing_rows_are_scans(tmp_path: Path) -> None:
    """A participant scanned twice counts twice; a row pasted twice does not."""
    found = find(tmp_path, HEADER + "a,40,1,1\na,40,1,1\na,41,2,2\nb,40,1,1\n")
    assert [source.scan for source in found.sources] == ["a", "a/2", "b"]
    assert "repeats" in found.findings[0].problem
    assert found.findings[0].what.startswith("t.csv, line 3")


def test_a_row_of_another_length_is_not_trusted(tmp_path: Path) -> None:
    """A lost delimiter shifts every later cell into the wrong region."""
    found = find(tmp_path, HEADER + "a,40,1\nb,40,1,2\nc,40,1,2,3\n")
    assert [source.participant for source in found.sources] == ["b"]
    assert [finding.problem for finding in found.findings] == [
        "3 cells where the header has 4",
        "5 cells where the header has 4",
    ]


def test_the_stamp_follows_the_measures_and_not_the_labels(tmp_path: Path) -> None:
    """A corrected age must not cost a new preparation; a corrected volume must."""
    stamps = [
        find(tmp_path, HEADER + row).sources[0].stamp
        for row in ("a,40,1,1\n", "a,99,1.0,1\n", "a,40,1,1.5\n")
    ]
    assert stamps[0] == stamps[1] != stamps[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\x00\x01\x02" * 100, "not text"),
        (b"\xff\xfe\x00p\x00a", "UTF-8"),
        (b"\x1f\x8b\x08 this is no gzip", "cannot be read"),
        (gzip.compress(HEADER.encode() * 500)[:40], "cannot be read"),
        (",".join(f"c{n}" for n in range(1_000_000)).encode(), "1,000,000 columns"),
        (b"x" * (9 << 20), "first line"),
        (HEADER.encode() + b'a,"never ends\n' + b"b,40,1,1\n" * 50, "line"),
        (HEADER.encode() + b"a,40,1,\x00\n", "NUL"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_table_is_refused_with_its_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """Whatever a hospital's export went wrong with, the error says which file and what."""
    with pytest.raises(DataError, match=r"t\.csv") as refused:
        find(tmp_path, content)
    assert message in str(refused.value)


def test_a_header_without_rows_is_a_finding(tmp_path: Path) -> None:
    """An empty site is told so; whether that is fatal is the policy's to say."""
    found = find(tmp_path, HEADER)
    assert not found.sources
    assert "no usable row" in found.findings[0].problem


def test_a_gzip_bomb_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte on disk may be a gigabyte in memory."""
    monkeypatch.setattr("client.data.delimited._LARGEST_TEXT", 1 << 20)
    content = HEADER.encode() + b"a,40,1,1\n" * 500_000
    with pytest.raises(DataError, match="no table of people"):
        find(tmp_path, gzip.compress(content))


def test_a_study_lists_each_column_once() -> None:
    """The same measure twice would count twice in every linear model."""
    with pytest.raises(ValidationError, match="more than once"):
        Features.Study(kind="features", columns=("a", "b", "a"))
    with pytest.raises(ValidationError):
        Features.Study(kind="features", columns=())


CELLS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp", "Zs"]), max_size=8
)


@settings(max_examples=60)
@given(
    columns=st.lists(CELLS.filter(bool), min_size=2, max_size=5, unique=True),
    rows=st.lists(st.lists(CELLS, min_size=5, max_size=5), max_size=5),
    delimiter=st.sampled_from("\t;,"),
)
def test_a_written_table_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    columns: list[str],
    rows: list[list[str]],
    delimiter: str,
) -> None:
    """Whatever the cells hold, quotes and delimiters included, what was written is read."""
    # the delimiter is the header's commonest: names that hold another one would be a lie
    columns = [name.translate({ord(mark): "_" for mark in "\t;,"}) for name in columns]
    columns = [f"{index}{name}" for index, name in enumerate(columns)]
    rows = [["x", *row[1 : len(columns)]] for row in rows]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([columns, *rows])
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    path.write_bytes(text.getvalue().encode())
    table = open_table(path)
    assert table.columns == tuple(columns)
    assert [line.cells(range(len(columns))) for line in table] == rows


@given(st.integers(-(10**9), 10**9), st.integers(0, 3), st.integers(0, 3))
def test_one_code_has_one_spelling(value: int, zeros: int, decimals: int) -> None:
    """1, 01 and 1.0 are one code to whoever typed them."""
    sign = "-" if value < 0 else ""
    written = f" {sign}{'0' * zeros}{abs(value)}{'.' + '0' * decimals if decimals else ''} "
    assert plain(written) == str(value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data are not on this machine")
@pytest.mark.parametrize(
    ("file", "participant", "rows", "columns", "count"),
    [
        (
            "fcon1000_freesurfer/fcon1000.csv.gz",
            "sub_id",
            {"site": "Baltimore"},
            ("lh_G&S_frontomargin_thickness",),
            23,
        ),
        (
            "abide_freesurfer_males/FS_features_ABIDE_males.csv.gz",
            "FILE_ID",
            {"site": "NYU"},
            ("lh_caudalanteriorcingulate_SurfArea",),
            147,
        ),
        ("ixi_dlmuse_volumes/ixi_dlmuse.csv.gz", "ID", {"site": "HH"}, ("702", "701"), 95),
    ],
)
def test_the_published_tables_are_read_whole(
    file: str, participant: str, rows: dict[str, str], columns: tuple[str, ...], count: int
) -> None:
    """The number of people is the one that each table's own description gives."""
    study = Features.Study(kind="features", columns=columns)
    site = Features.Site(kind="features", table=file, participant=participant, rows=rows)
    found = FeaturesReader.find(study, site, SHARED, frozenset())
    assert len(found.sources) == count
    assert not found.findings


def found_in(folder: Path, columns: tuple[str, ...], rows: list[list[Any]]) -> Any:
    """What the reader finds in a table with the columns id, a, b, tiv."""
    text = ["participant_id,a,b,tiv", *(",".join(map(str, row)) for row in rows)]
    (folder / "t.csv").write_text("\n".join(text))
    study = Features.Study(kind="features", columns=columns)
    site = Features.Site(kind="features", table="t.csv")
    return study, FeaturesReader.find(study, site, folder, frozenset())


def test_ratios_are_made_of_two_columns_or_of_a_persons_own_mean(tmp_path: Path) -> None:
    """Volumes as shares of the head, thicknesses as shares of a person's own."""
    columns = ("a / tiv", "a", "b", "b / mean")
    study, found = found_in(tmp_path, columns, [["p1", 3, 5, 1500], ["p2", 2, 2, 1000]])
    made = [FeaturesReader.prepare(study, source).samples[0] for source in found.sources]
    np.testing.assert_allclose(made, [[0.002, 3, 5, 1.25], [0.002, 2, 2, 1.0]], rtol=1e-6)
    assert not {"a", "b", "tiv"} & set(found.columns)  # none of them is a label


def test_a_row_that_is_divided_by_nothing_is_left_out_by_name(tmp_path: Path) -> None:
    """A head volume of 0 is one that was not measured."""
    _, found = found_in(tmp_path, ("a / tiv",), [["p1", 3, 5, 0], ["p2", 2, 2, 1000]])
    assert [source.participant for source in found.sources] == ["p2"]
    assert any("tiv is 0, and a is to be divided by it" in one.problem for one in found.findings)


def test_columns_that_are_the_same_for_everyone_are_named(tmp_path: Path) -> None:
    """Zeros of a pipeline that did not measure would be learnt as a site's mark."""
    rows = [[f"p{n}", n, 0, 1400 + n] for n in range(12)]
    _, found = found_in(tmp_path, ("a", "b", "tiv"), rows)
    assert [one.problem for one in found.findings] == [
        "b (0) is the same in all 12 rows: was it measured here?"
    ]
    assert not found_in(tmp_path, ("a", "b", "tiv"), rows[:9])[1].findings


def test_a_mean_needs_plain_columns() -> None:
    """Ratios to a mean of ratios to that mean would be a circle."""
    with pytest.raises(ValueError, match="no plain one"):
        Features.Study(kind="features", columns=("a / mean", "b / tiv"))


TOLERANT = Features.Study(
    kind="features", columns=("a", "b", "c", "d", "a / b"), missing_columns=0.4
)


def found_of(folder: Path, text: str) -> Found:
    (folder / "t.csv").write_text(text)
    site = Features.Site(kind="features", table="t.csv")
    return FeaturesReader.find(TOLERANT, site, folder, frozenset())


def test_a_share_of_columns_and_cells_may_be_missing_and_is_told(tmp_path: Path) -> None:
    """A hospital without one region need not stay away; nothing is made up where it reads."""
    text = "participant_id,a,b,d\np,1,2,4\nq,,2,4\nr,1,n/a,4\ns,1,2,none\n"
    found = found_of(tmp_path, text)
    read = [FeaturesReader.prepare(TOLERANT, s).samples[0].tolist() for s in found.sources]
    np.testing.assert_equal(read, [[1, 2, np.nan, 4, 0.5]])
    told = [finding.problem for finding in found.findings]
    assert any('lacks 1 of 4 columns: "c"; the training sites\' mean stands in' in t for t in told)
    assert told.count("lacks 3 of 5 columns; data.missing_columns of the study is 0.4") == 2
    assert any('holds "none"' in one for one in told)


def test_more_missing_columns_than_agreed_keep_a_site_away(tmp_path: Path) -> None:
    """A ratio of a missing column is missing, too: a and its ratio are two of five, b is a third."""
    assert len(found_of(tmp_path, "participant_id,b,c,d\np,1,2,4\n").sources) == 1
    with pytest.raises(DataError, match='lacks 2 of 4 columns: "a", "b"'):
        found_of(tmp_path, "participant_id,c,d\np,1,2\n")


def test_nothing_over_nothing_is_no_ratio(tmp_path: Path) -> None:
    """Two zeros of a failed segmentation must not end the reading of a table."""
    found = found_of(tmp_path, "participant_id,a,b,c,d\np,0,0,1,1\nq,1,2,3,4\n")
    assert [source.participant for source in found.sources] == ["q"]
    assert any("b is 0" in finding.problem for finding in found.findings)
