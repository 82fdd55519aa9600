"""Cells of a site's table become labels in the study's terms, or are named and left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from client.data.labels import Labels, read_labels
from client.site import Column
from common.errors import DataError, SettingError
from common.sections import Target

AGE = Target(kind="regression", unit="years", low=0, high=120)
SEX = Target(kind="binary", classes=("female", "male"))
STAGE = Target(kind="categorical", classes=("none", "mild", "severe"))


def read(target: Target, cells: list[str], **column: Any) -> tuple[list[float], list[str]]:
    """Labels and problems of one column."""
    found = all_of({"it": target}, {"it": Column(column="c", **column)}, cells)
    return found.values["it"].tolist(), [f.problem for f in found.findings if not f.error]


def all_of(targets: dict[str, Target], columns: dict[str, Column], cells: list[str]) -> Labels:
    rows = [{"c": cell} for cell in cells]
    return read_labels(targets, columns, rows, [f"scan {n}" for n in range(len(rows))])


@given(st.lists(st.floats(0, 120, allow_nan=False), min_size=1, max_size=20))
def test_numbers_are_read_in_their_own_unit(ages: list[float]) -> None:
    """Neither centred nor scaled: those are constants of the study, applied in training."""
    labels, problems = read(AGE, [repr(age) for age in ages])
    np.testing.assert_array_equal(np.float32(labels), np.float32(ages))
    assert not problems


@given(st.lists(st.sampled_from(["n/a", "", "NA", "-9999", "-9999.00", " nan "]), min_size=1))
def test_missing_entries_are_unknown_and_no_finding(cells: list[str]) -> None:
    """Absence is normal; a -9999 that trains as an age is a classic."""
    labels, problems = read(AGE, cells)
    assert np.isnan(labels).all()
    assert not problems


def test_a_site_says_itself_what_means_missing() -> None:
    """Then only that does, however the number is written."""
    labels, problems = read(AGE, ["-9", "-9.00", "-9999", "30"], missing=["-9.0"])
    np.testing.assert_array_equal(labels, [np.nan, np.nan, np.nan, 30])
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("ages", "factor", "told"),
    [
        ([480, 611, 1020], 1.0, "704, the study's centre 50 years (14.1 times it: months"),
        ([480, 611, 1020], 1 / 12, ""),
        ([14610, 21185, 30000], 1.0, "21,900, the study's centre 50 years (439 times it: days"),
        ([7, 9, 12], 1.0, ""),
        ([78, 85, 93], 1.0, ""),
    ],
    ids=["months", "converted", "days", "children", "old"],
)
def test_ages_in_another_unit_are_told_and_those_of_other_people_are_not(
    ages: list[float], factor: float, told: str
) -> None:
    """Label sums never leave a site, so nobody else can notice."""
    target = Target(kind="regression", unit="years", centre=50, scale=15)
    labels, problems = read(target, [str(age) for age in ages], factor=factor)
    assert not np.isnan(labels).any()
    assert bool(problems) == bool(told)
    assert all(told in problem for problem in problems)


def test_labels_are_compared_with_no_centre_that_a_study_does_not_give() -> None:
    """Zero and one are what is there without any choice."""
    assert read(AGE, ["30", "50"])[1] == []


def test_a_factor_leads_to_the_studys_unit() -> None:
    """Months here, years there; the bounds are the study's."""
    labels, problems = read(AGE, ["480", "1452"], factor=1 / 12)
    assert labels[0] == pytest.approx(40)
    assert np.isnan(labels[1])
    assert "121 is outside 0 to 120 years" in problems[0]


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("forty", "not a number"),
        ("39,5", "decimal point as ."),
        ("inf", "not a number"),
        ("1e400", "outside"),
        ("-1", "outside"),
        ("1_0", "not a number"),
        ("4" * 5000, "outside"),
    ],
)
def test_a_cell_that_is_no_age_is_named_and_left_out(cell: str, problem: str) -> None:
    """The row is named, the others stay, nothing crashes."""
    found = all_of({"age": AGE}, {"age": Column(column="c")}, ["30", cell])
    assert found.values["age"][0] == 30
    assert np.isnan(found.values["age"][1])
    (finding,) = found.findings
    assert problem in finding.problem
    assert finding.what == 'scan 1, column "c"'
    assert len(finding.problem) < 200


def test_codes_lead_to_the_studys_classes() -> None:
    """However the site spells them; the second class is the positive one."""
    labels, problems = read(SEX, ["F", "M", "n/a"], codes={"M": "male", "F": "female"})
    np.testing.assert_array_equal(labels, [0, 1, np.nan])
    assert not problems


@pytest.mark.parametrize("written", ["1", "1.0", "01", " 1 ", "1.00"])
@pytest.mark.parametrize("code", ["1", "1.0"])
def test_numbers_as_codes_match_however_they_are_written(written: str, code: str) -> None:
    """A column with one missing entry turns 1 into 1.0 in many a program."""
    labels, _ = read(SEX, [written, "-1"], codes={code: "male", "-1": "female"})
    assert labels == [1, 0]


def test_without_codes_the_words_are_the_classes() -> None:
    """Exactly; a near miss is a question to the site, not an answer."""
    labels, problems = read(STAGE, ["none", "severe", "Mild", "moderate"])
    np.testing.assert_array_equal(labels, [0, 2, np.nan, np.nan])
    assert 'did you mean "mild"?' in problems[0]
    assert "there are: none, mild, severe" in problems[1]


def test_codes_of_an_unknown_class_are_a_mistake_of_the_site_file() -> None:
    """Guessing would swap classes at one site only, which no metric shows."""
    with pytest.raises(SettingError, match=r'M stands for "mal".*did you mean "male"\?'):
        read(SEX, ["M"], codes={"M": "mal"})
    with pytest.raises(SettingError, match="is a number"):
        read(AGE, ["30"], codes={"30": "old"})
    with pytest.raises(SettingError, match="one code"):
        read(SEX, ["1"], codes={"1": "male", "1.0": "female"})


def test_a_column_that_is_not_there_is_an_error_with_the_nearest_name() -> None:
    """All labels silently missing would look like a site without that target."""
    with pytest.raises(DataError, match=r'"aeg".*did you mean "age"\?'):
        read_labels({"age": AGE}, {"age": Column(column="aeg")}, [{"age": "1", "sex": "F"}], ["a"])


def test_a_target_without_a_column_is_unknown_for_everyone() -> None:
    """A site that never asked for it still takes part in the others."""
    found = all_of({"age": AGE, "sex": SEX}, {"age": Column(column="c")}, ["30", "40"])
    assert np.isnan(found.values["sex"]).all()
    assert found.values["sex"].shape == (2,)
    assert found.values["sex"].dtype == np.float32


def test_a_target_that_the_study_lacks_is_noted() -> None:
    """Perhaps another study's; perhaps a typing mistake that hides all labels."""
    found = all_of({"age": AGE}, {"agee": Column(column="c")}, ["30"])
    assert 'did you mean "age"?' in found.findings[0].problem


def test_one_cell_is_complained_of_once() -> None:
    """A scan of a thousand volumes has one age, not a thousand wrong ones."""
    rows = [{"c": "x"}] * 3
    found = read_labels({"age": AGE}, {"age": Column(column="c")}, rows, ["scan"] * 3)
    assert [finding.error for finding in found.findings] == [False, True]


def test_rows_without_any_table_have_no_labels() -> None:
    """The absent table was reported where it was looked for."""
    found = read_labels({"age": AGE}, {"age": Column(column="age")}, [{}, {}], ["a", "b"])
    assert np.isnan(found.values["age"]).all()


@given(st.lists(st.text(max_size=12), max_size=12))
def test_no_cell_can_crash_a_site(cells: list[str]) -> None:
    """Whatever people type, a label is in range or unknown."""
    for target in (AGE, SEX, STAGE):
        labels, _ = read(target, cells)
        top = 120 if target.kind == "regression" else len(target.classes) - 1
        assert all(np.isnan(label) or 0 <= label <= top for label in labels)


def test_a_value_holds_for_every_scan_of_a_site() -> None:
    """A site that acquired nothing but rest has no column that says so."""
    labels = all_of({"it": STAGE}, {"it": Column(value="mild")}, ["a", "b"])
    assert labels.values["it"].tolist() == [1.0, 1.0]
    coded = {"it": Column(value="R", codes={"R": "severe"})}
    assert all_of({"it": STAGE}, coded, ["a"]).values["it"].tolist() == [2.0]
    years = all_of({"it": AGE}, {"it": Column(value="480", factor=1 / 12)}, ["a"])
    assert years.values["it"][0] == pytest.approx(40)


@pytest.mark.parametrize(("target", "value"), [(STAGE, "wild"), (AGE, "old"), (AGE, "200")])
def test_a_value_that_is_no_label_is_refused(target: Target, value: str) -> None:
    """In a column one row loses its label; here all would."""
    with pytest.raises(SettingError, match=f"targets.it.value: .*{value}"):
        all_of({"it": target}, {"it": Column(value=value)}, ["a"])


@pytest.mark.parametrize("given_", [{}, {"column": "c", "value": "v"}])
def test_a_label_comes_from_a_column_or_is_a_value(given_: dict[str, str]) -> None:
    """Both would contradict each other, neither says nothing."""
    with pytest.raises(ValidationError, match="column or value is needed"):
        Column(**given_)


@pytest.mark.parametrize(
    ("cells", "column", "reason"),
    [
        (["", "n/a"], {}, "every entry of its column means: not known"),
        (["", ""], {}, "its column is empty"),
        (["1041", "300"], {}, "if it is in months, set factor = 0.083333"),
        (["14600", "20000"], {}, "if it is in days, set factor = 0.0027379"),
        (["39,5"], {}, "write the decimal point as ."),
        (["old", "young"], {}, "is not a number"),
    ],
)
def test_a_promised_target_without_a_label_is_an_error(
    cells: list[str], column: dict[str, Any], reason: str
) -> None:
    """A site without labels trains nothing, and would hear of it from nobody."""
    found = all_of({"it": AGE}, {"it": Column(column="c", **column)}, cells)
    (error,) = [finding for finding in found.findings if finding.error]
    assert error.what == "targets.it"
    assert error.problem.startswith(f"none of {len(cells)} samples has a label (column c)")
    assert reason in error.problem


def test_entries_of_which_most_cannot_be_used_are_an_error() -> None:
    """One code of the site's own is missing from the site file: half of its people vanish."""
    codes = {"M": "male"}
    found = all_of({"it": SEX}, {"it": Column(column="c", codes=codes)}, ["M", "F", "F", ""])
    (error,) = [finding for finding in found.findings if finding.error]
    assert error.problem.startswith("only 1 of 3 entries (column c) can be used; the first of the")
    assert error.problem.endswith('"F" is no known code; there are: M')


def test_one_label_is_enough_to_be_no_error() -> None:
    """Missing ones are normal."""
    found = all_of({"it": AGE}, {"it": Column(column="c")}, ["", "n/a", "40"])
    assert not found.findings


def test_a_column_that_no_table_has_is_named_beside_what_tables_have() -> None:
    """Only the columns that are asked for are kept; hints come from all."""
    rows = [{}, {}]
    with pytest.raises(DataError, match=r'did you mean "Age"\?'):
        read_labels({"it": AGE}, {"it": Column(column="age")}, rows, ["a", "b"], ("id", "Age"))
    with pytest.raises(DataError, match="has it twice"):
        read_labels({"it": AGE}, {"it": Column(column="age")}, rows, ["a", "b"], ("age", "age"))


# --- cells as hospitals write them --------------------------------------------------------------


@st.composite
def written_ages(draw: Any) -> tuple[list[float | None], list[str], float]:
    """Ages, as they are and as some cell says them, and the factor of the site file."""
    unit = draw(st.sampled_from((1.0, 1 / 12)))
    ages = draw(st.lists(st.one_of(st.none(), st.integers(0, 120)), min_size=1, max_size=12))
    cells = []
    for age in ages:
        text = "" if age is None else f"{age / unit:.4f}"
        how = draw(st.sampled_from(("plain", "comma", "spaces", "unit", "exponent", "quoted")))
        if age is None:
            text = draw(st.sampled_from(("", "n/a", "NA", "-9999", "unknown", "?")))
        elif how == "comma":
            text = text.replace(".", ",")
        elif how == "spaces":
            text = f"  {text} "
        elif how == "unit":
            text = f"{text} y"
        elif how == "exponent":
            text = f"{age / unit:.9e}"
        cells.append(text)
    return ages, cells, unit


def every_label_is_right_or_named(made: tuple[list[float | None], list[str], float]) -> None:
    ages, cells, unit = made
    found = all_of({"it": AGE}, {"it": Column(column="c", factor=unit)}, cells)
    named = {finding.what.partition(",")[0] for finding in found.findings}
    for number, (age, label) in enumerate(zip(ages, found.values["it"].tolist(), strict=True)):
        if np.isfinite(label):
            assert age is not None
            assert label == pytest.approx(age, abs=0.001)
        elif age is not None:  # a label that was there and was not taken
            assert f"scan {number}" in named


@given(written_ages())
def test_every_label_of_any_table_is_right_or_named(made: Any) -> None:
    """Decimal commas, units in cells, spaces, exponents: nothing is guessed, nothing is silent."""
    every_label_is_right_or_named(made)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(written_ages())
def test_every_label_of_thousands_of_tables_is_right_or_named(made: Any) -> None:
    """The same of 2,000."""
    every_label_is_right_or_named(made)
