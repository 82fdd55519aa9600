"""The hospital's own file is checked like the study, and its template works as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.site import Site, load_site
from client.templates import site_template
from common import catalogue
from common.errors import SettingError

TEXT = """
name = "alpha"
role = "train"

[data]
kind = "features"
table = "t.csv"

[targets.sex]
column = "gender"
codes = {F = "female"}

[policy]
minimum_cohort = 2
"""


def load(folder: Path, text: str) -> Site:
    file = folder / "site.toml"
    file.write_text(text)
    return load_site(file)


FAULTS = {
    "no name": ('name = "alpha"\n', "", ["name is missing", "required"]),
    "path": ('"alpha"', '"../alpha"', ['name is "../alpha"', "match pattern", "line 2"]),
    "upper case": ('"alpha"', '"Alpha"', ['name is "Alpha"', "match pattern", "line 2"]),
    "space": ('"alpha"', '"al pha"', ['name is "al pha"', "match pattern", "line 2"]),
    "role": ('"train"', '"judge"', ['role is "judge"', "'train' or 'heldout'", "line 3"]),
    "unknown table": ("[policy]", "[polcy]", ["polcy is not", "did you mean policy?", "line 13"]),
    "unknown key": ("column =", "colum =", ["targets.sex.colum", "mean column?", "line 10"]),
    "in data": ("table =", "tabel =", ["data.tabel", "did you mean table?", "line 7"]),
    "in policy": ("minimum_cohort", "minimal_cohort", ["policy.minimal_cohort", "minimum_cohort?"]),
    "no kind": (
        'kind = "features"\n',
        "",
        ["data.kind is missing", "features, synthetic-t1w", "line 5"],
    ),
    "kind": ('"features"', '"featurs"', ["data.kind", "did you mean features?", "line 6"]),
    "no data": ('[data]\nkind = "features"\ntable = "t.csv"\n', "", ["data is missing"]),
    "data": ('[data]\nkind = "features"\ntable = "t.csv"\n', "data = 3", ["data is 3", "table"]),
    "cohort": ("cohort = 2", "cohort = 0", ["policy.minimum_cohort is 0", "equal to 1", "line 14"]),
    "type": ("cohort = 2", 'cohort = "2"', ['minimum_cohort is "2"', "valid integer", "line 14"]),
    "code": ('{F = "female"}', "{F = 1}", ["targets.sex.codes.F is 1", "valid string", "line 11"]),
    "missing": ("codes =", "missing = -9999\n#", ["missing is -9999", "valid list", "line 11"]),
    "factor": ("codes =", "factor = nan\n#", ["targets.sex.factor is nan", "finite", "line 11"]),
    "file": ('name = "alpha"', 'name = "alpha"\nfile = "x"', ["file is not a known key", "line 3"]),
    "hours": (
        "[policy]",
        '[policy]\nhours = ["Mon-Fry 19:00-07:00"]',
        ['policy.hours.0 is "Mon-Fry 19:00-07:00"', '"Fry" is no day; Mon, Tue', "line 14"],
    ),
    "no list of hours": (
        "[policy]",
        '[policy]\nhours = "19:00-07:00"',
        ['policy.hours is "19:00-07:00"', "valid list", "line 14"],
    ),
    "exposures": (
        "[policy]",
        "[policy]\nmost_exposures = -1",
        ["policy.most_exposures is -1", "equal to 0", "line 14"],
    ),
    "size": (
        "[policy]",
        "[policy]\nlargest_report_mb = 0.0",
        ["policy.largest_report_mb is 0.0", "greater than 0", "line 14"],
    ),
    "norm": (
        "[policy]",
        "[policy]\nlargest_update_norm = inf",
        ["policy.largest_update_norm is inf", "finite", "line 14"],
    ),
    "order": ("[policy]", '[policy]\norders = ["dig"]', ['policy.orders.0 is "dig"', "'census'"]),
    "device": ("[policy]", '[device]\nkind = "tpu"\n[policy]', ['device.kind is "tpu"', "'auto'"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_site_file_is_named_with_its_remedy(tmp_path: Path, name: str) -> None:
    """A hospital writes this file once a year; the message is all the manual it will read."""
    old, new, words = FAULTS[name]
    assert old in TEXT
    with pytest.raises(SettingError) as caught:
        load(tmp_path, TEXT.replace(old, new, 1))
    for word in words:
        assert word in str(caught.value)
    assert "site.toml" in str(caught.value)


@pytest.mark.parametrize("kind", catalogue.names("kinds"))
def test_the_site_template_is_a_site(tmp_path: Path, kind: str) -> None:
    """What a hospital is handed must work before the first edit, remarks taken away too."""
    text = site_template("new", kind)
    site = load(tmp_path, text)
    assert (site.name, site.role, site.data.kind) == ("new", "train", kind)
    shown = [line[2:] if line[:2] == "# " and " = " in line else line for line in text.splitlines()]
    assert shown != text.splitlines()
    load(tmp_path, "\n".join(shown))


def test_an_unknown_kind_of_template_is_refused_with_those_there_are() -> None:
    """`--kind fmri` is a fair guess; a KeyError would not be a fair answer."""
    with pytest.raises(
        SettingError, match='kind "fmri" is not installed; installed: .*features, synthetic-t1w'
    ):
        site_template("new", "fmri")


def test_paths_start_from_the_site_file(tmp_path: Path) -> None:
    """The same command must find the same data from any folder."""
    folder = tmp_path / "deep"
    folder.mkdir()
    site = load(folder, TEXT)
    assert site.root == folder
    assert site.state == folder / ".callosum"


def test_limits_and_hours_are_read_as_they_are_written(tmp_path: Path) -> None:
    """A hospital that says nothing is not without limits; one that does has its own."""
    plain = load(tmp_path, TEXT).policy
    assert (plain.most_exposures, plain.most_judgements, plain.hours) == (1000, 3, ())
    assert (plain.largest_update_norm, plain.largest_drift) == (1000.0, 30.0)
    text = TEXT + (
        "most_exposures = 40\nlargest_report_mb = 12.5\nlargest_update_norm = 3.0\n"
        "most_judgements = 1\nlargest_drift = 0.0\n"
        'hours = ["Mon-Fri 19:00-07:00", "Sat,Sun 00:00-24:00"]\n'
    )
    policy = load(tmp_path, text).policy
    assert (policy.most_exposures, policy.largest_report_mb) == (40, 12.5)
    assert (policy.most_judgements, policy.largest_drift) == (1, 0.0)
    assert policy.largest_update_norm == 3.0
    assert policy.hours == ("Mon-Fri 19:00-07:00", "Sat,Sun 00:00-24:00")
