"""Scans and the rows that are about them: every join is counted, and none falls back in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.data.reader import Found
from client.data.readers.t1w import T1wReader
from common.kinds.t1w import T1w

DATA = T1w.Study(kind="t1w", shape=(24, 28, 24), spacing_mm=8.0)


def data_set(folder: Path, table: str, *scans: str) -> Path:
    root = folder / "bids"
    root.mkdir(exist_ok=True)
    (root / "participants.tsv").write_text(table)
    for scan in scans:
        path = root / scan
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def scan(who: str, session: str = "", more: str = "", ending: str = ".nii.gz") -> str:
    inside = f"sub-{who}/" + (f"ses-{session}/" if session else "")
    name = f"sub-{who}_" + (f"ses-{session}_" if session else "") + more
    return f"{inside}anat/{name}T1w{ending}"


def found(root: Path, study: T1w.Study = DATA, **keys: Any) -> Found:
    site = T1w.Site(kind="t1w", root=root.name, **keys)
    return T1wReader.find(study, site, root.parent, frozenset({"age", "sex"}))


def ages(got: Found) -> dict[str, str | None]:
    return {source.scan: source.row.get("age") for source in got.sources}


def errors(got: Found) -> list[str]:
    return [f"{finding.what}: {finding.problem}" for finding in got.findings if finding.error]


# --- visits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [("01", "02"), ("ses-01", "ses-02"), ("ses-01", "02")])
def test_sessions_join_with_their_prefix_or_without(
    tmp_path: Path, written: tuple[str, str]
) -> None:
    """Every follow-up silently got the baseline's age, ten years wrong."""
    root = data_set(tmp_path, "participant_id\tage\nsub-a\t20\n", scan("a", "01"), scan("a", "02"))
    lines = "".join(f"{w}\t{age}\n" for w, age in zip(written, (20, 30), strict=True))
    (root / "sub-a/sub-a_sessions.tsv").write_text("session_id\tage\n" + lines)
    got = found(root)
    assert list(ages(got).values()) == ["20", "30"]
    assert [join.told for join in got.joins][1].startswith("sessions: 2 of 2 rows have scans")


def test_sessions_that_match_nothing_are_an_error_and_lend_no_age(tmp_path: Path) -> None:
    """The table says when they were scanned, under names that no scan has."""
    root = data_set(
        tmp_path, "participant_id\tage\tsex\nsub-a\t20\tF\n", scan("a", "01"), scan("a", "02")
    )
    (root / "sub-a/sub-a_sessions.tsv").write_text("session_id\tage\nbl\t20\nfu\t30\n")
    got = found(root)
    assert list(ages(got).values()) == [None, None]
    assert [source.row["sex"] for source in got.sources] == ["F", "F"]
    (error,) = errors(got)
    assert error.startswith("sessions: hardly any of its 2 rows belongs to one of 2 visits")


def test_contradicting_rows_of_a_session_are_named_and_neither_is_used(tmp_path: Path) -> None:
    """Nobody can tell which age is right; the last one is no better than the first."""
    root = data_set(tmp_path, "participant_id\tage\nsub-a\t20\n", scan("a", "1"), scan("a", "2"))
    (root / "sub-a/sub-a_sessions.tsv").write_text("session_id\tage\n1\t20\n1\t21\n2\t30\n")
    got = found(root)
    assert list(ages(got).values()) == ["", "30"]
    assert any("line 3" in f.what and "neither is used" in f.problem for f in got.findings)


def test_a_participants_table_with_a_row_a_visit_is_joined_by_session(tmp_path: Path) -> None:
    """All participants were left out, and no remedy was named."""
    table = "participant_id\tsession_id\tage\tsex\n" + "".join(
        f"sub-{who}\tses-{visit}\t{20 + 10 * visit}\tF\n" for who in "ab" for visit in (1, 2)
    )
    root = data_set(tmp_path, table, *(scan(w, str(v)) for w in "ab" for v in (1, 2)), scan("b"))
    got = found(root)
    assert list(ages(got).values()) == ["30", "40", None, "30", "40"]
    assert {source.row["sex"] for source in got.sources} == {"F"}


def test_visits_without_a_session_say_how_they_could_be_told_apart(tmp_path: Path) -> None:
    """Two rows, one person, no column that says when."""
    root = data_set(tmp_path, "participant_id\tage\nsub-a\t20\nsub-a\t30\n", scan("a"))
    got = found(root)
    assert not got.sources
    assert any("a column session_id must say so" in f.problem for f in got.findings)


def test_a_broken_row_of_a_sessions_table_is_named(tmp_path: Path) -> None:
    """It had the first table's faults and none of its checks."""
    root = data_set(tmp_path, "participant_id\tage\nsub-a\t20\n", scan("a", "1"))
    (root / "sub-a/sub-a_sessions.tsv").write_text("session_id\tage\n1\n\t5\n")
    named = [(f.what, f.problem) for f in found(root).findings if f.left_out]
    assert named == [
        ("sub-a_sessions.tsv, line 2", "1 cells where the header has 2"),
        ("sub-a_sessions.tsv, line 3", "names no session"),
    ]


def test_a_sessions_table_that_cannot_be_read_lends_no_age(tmp_path: Path) -> None:
    """It says which entries differ between visits; without it nobody knows whose age is whose."""
    table = "participant_id\tage\nsub-a\t20\nsub-b\t30\n"
    root = data_set(tmp_path, table, scan("a", "1"), scan("a", "2"), scan("b"))
    (root / "sub-a/sub-a_sessions.tsv").write_bytes("session_id\tage\n1\t20\n".encode("utf-16"))
    got = found(root)
    assert list(ages(got).values()) == [None, None, "30"]
    assert any("UTF-16" in error for error in errors(got))


# --- people ---------------------------------------------------------------------------------------


def test_rows_and_scans_that_hardly_meet_are_an_error_with_the_nearest(tmp_path: Path) -> None:
    """Excel has eaten the zeros."""
    people = [f"{n:03d}" for n in range(1, 9)]
    table = "participant_id\tage\n" + "".join(f"{int(who)}\t40\n" for who in people)
    got = found(data_set(tmp_path, table, *map(scan, people)))
    assert got.joins[0].told == (
        "participants.tsv: 0 of 8 rows have scans, 0 of 8 people with scans have a row"
    )
    (error,) = errors(got)
    assert 'of "sub-1" there is none; did you mean "sub-001"?' in error


def test_a_table_of_the_whole_consortium_is_no_error(tmp_path: Path) -> None:
    """A thousand rows, of which four are this site's, fit four people with scans."""
    table = "participant_id\tage\n" + "".join(f"{n:04d}\t40\n" for n in range(1000))
    got = found(data_set(tmp_path, table, *(scan(f"{n:04d}") for n in range(4))))
    assert not errors(got)
    assert (got.joins[0].rows, got.joins[0].matched_others) == (1000, 4)


def test_people_in_two_spellings_are_left_out_and_both_named(tmp_path: Path) -> None:
    """One person at both sides of a split is worse than one person fewer."""
    table = "participant_id\tage\nsub-01\t40\nsub-1\t41\nsub-02\t42\n"
    got = found(data_set(tmp_path, table, scan("01"), scan("1"), scan("02")))
    assert list(ages(got).values()) == ["42"]
    told = {f.what: f.problem for f in got.findings}
    assert "sub-1 in another spelling" in told["sub-01"]


def test_entities_that_no_scan_has_are_an_error_with_the_nearest(tmp_path: Path) -> None:
    """A filter that matches nothing."""
    root = data_set(tmp_path, "participant_id\nsub-a\n", scan("a", more="space-MNI152NLin6Asym_"))
    got = found(root, entities={"space": "MNI152Nlin6Asym"})
    assert any('did you mean "MNI152NLin6Asym"?' in error for error in errors(got))


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sub-a/anat/sub-a_acq-0.8mm_T1w.nii.gz", "has a dot in its name"),
        ("sub-a/anat/sub-a_t1w.nii.gz", "is not named sub-LABEL_..._T1w.nii.gz"),
        ("sub-a/anat/sub-a-T1w.nii.gz", "is not named sub-LABEL_..._T1w.nii.gz"),
        ("sub-a/anat/sub-a_T1w (1).nii.gz", "is not named sub-LABEL_..._T1w.nii.gz"),
        ("sub-a/anat/sub-a_T1w.NII.GZ", "a NIfTI file (.nii.gz) is needed"),
        ("sub-a/Anat/sub-a_T1w.nii.gz", "is not named anat"),
        ("sub-a/ses01/anat/sub-a_T1w.nii.gz", "is not named ses-LABEL"),
        ("sub_001/anat/sub-001_T1w.nii.gz", "is not named sub-LABEL"),
        ("Sub-a/anat/Sub-a_T1w.nii.gz", "is not named sub-LABEL"),
    ],
)
def test_what_is_almost_a_scan_is_named(tmp_path: Path, name: str, said: str) -> None:
    """Nobody puts a scan there to be passed over in silence."""
    got = found(data_set(tmp_path, "participant_id\nsub-b\n", scan("b"), name))
    assert [source.participant for source in got.sources] == ["sub-b"]
    assert any(said in f.problem and f.left_out for f in got.findings)


def test_other_images_of_a_pipeline_are_no_almost_scans(tmp_path: Path) -> None:
    """fMRIPrep leaves dozens beside each scan."""
    others = [
        "sub-a/anat/sub-a_desc-brain_mask.nii.gz",
        "sub-a/anat/sub-a_space-T1w_label-GM_probseg.nii.gz",
        "sub-a/anat/sub-a_from-T1w_to-MNI_mode-image_xfm.nii.gz",
        "sub-a/anat/sub-a_T2w.nii.gz",
        "sub-a/func/sub-a_task-rest_bold.nii.gz",
        "sourcedata/sub-a/T1w.nii.gz",
    ]
    got = found(data_set(tmp_path, "participant_id\tage\nsub-a\t3\n", scan("a"), *others))
    assert len(got.sources) == 1
    assert not got.findings


@pytest.mark.parametrize(("align", "chosen"), [("centre", ""), ("world", "MNI152NLin6Asym")])
def test_versions_of_one_scan_are_one_scan(tmp_path: Path, align: str, chosen: str) -> None:
    """Native and in a template's space: counted twice, a site's weight doubled in silence."""
    names = [scan(w, more=m) for w in "ab" for m in ("desc-preproc_",
             "space-MNI152NLin6Asym_desc-preproc_")]  # fmt: skip
    root = data_set(tmp_path, "participant_id\nsub-a\nsub-b\n", *names)
    got = found(root, DATA.model_copy(update={"align": align}))
    assert [source.participant for source in got.sources] == ["sub-a", "sub-b"]
    assert (f"space-{chosen}" if chosen else "sub-a_desc") in got.sources[0].scan
    (note,) = [f for f in got.findings if f.what == "versions"]
    assert "2 scans are there in several versions" in note.problem


def test_versions_that_nobody_chose_between_are_left_out(tmp_path: Path) -> None:
    """Two templates for a study that wants none, and one name with two endings."""
    root = data_set(
        tmp_path,
        "participant_id\nsub-a\nsub-b\nsub-c\n",
        scan("a", more="space-MNI152NLin6Asym_"),
        scan("a", more="space-MNI152NLin2009cAsym_"),
        scan("b"),
        scan("b", ending=".nii"),
        scan("c", more="run-1_"),
        scan("c", more="run-2_"),
    )
    got = found(root)
    assert [source.participant for source in got.sources] == ["sub-c", "sub-c"]
    assert sum("is there in several versions" in f.problem for f in got.findings) == 2


# --- whatever a hospital writes -------------------------------------------------------------------


@st.composite
def hospital(draw: Any) -> dict[str, Any]:
    """People, their visits and ages; and how the tables spell them."""
    people = draw(
        st.lists(st.from_regex(r"[a-z]{1,2}[1-9]", fullmatch=True), min_size=1, max_size=4,
                 unique=True)
    )  # fmt: skip
    visits = {who: draw(st.lists(st.sampled_from(["1", "2", "bl"]), max_size=2, unique=True))
              for who in people}  # fmt: skip
    return {
        "visits": visits,
        "prefix": draw(st.sampled_from(("", "sub-"))),
        "session prefix": draw(st.sampled_from(("", "ses-"))),
        "sessions in": draw(st.sampled_from(("participants", "sessions", "nowhere"))),
        "lost": draw(st.sets(st.sampled_from(people))),
        "twice": draw(st.sets(st.sampled_from(people))),
        "other age": draw(st.booleans()),
        "shift": draw(st.sampled_from((0, 0, 0, 5))),  # a row for a visit that nobody had
        "delimiter": draw(st.sampled_from("\t;,")),
        "end": draw(st.sampled_from(("\n", "\r\n"))),
    }


def age_of(who: str, visit: str) -> str:
    return str(20 + sum(map(ord, who)) % 40 + {"": 0, "1": 0, "2": 3, "bl": 7}.get(visit, 0))


def built(folder: Path, made: dict[str, Any]) -> Path:
    """The data set on disk."""
    cell, end, where = made["delimiter"], made["end"], made["sessions in"]
    names = [scan(who, visit) for who, own in made["visits"].items() for visit in own or [""]]
    header = ["participant_id", *(["session_id"] if where == "participants" else []), "age", "sex"]
    lines = [header]
    for who, own in made["visits"].items():
        if who in made["lost"]:
            continue
        for visit in (own or [""]) if where == "participants" else [(own or [""])[0]]:
            session = [made["session prefix"] + visit if visit else "n/a"]
            row = [
                made["prefix"] + who,
                *(session if where == "participants" else []),
                age_of(who, visit),
                "F",
            ]
            lines.append(row)
            if who in made["twice"]:
                lines.append([*row[:-2], "99", "F"] if made["other age"] else row)
    root = data_set(folder, end.join(cell.join(line) for line in lines) + end, *names)
    if where == "sessions":
        for who, own in made["visits"].items():
            if own:
                rows = [f"{made['session prefix']}{v}\t{age_of(who, v)}" for v in own]
                rows += ["ses-9\t80"] * bool(made["shift"])
                path = root / f"sub-{who}/sub-{who}_sessions.tsv"
                path.write_text("session_id\tage\n" + "\n".join(rows) + "\n")
    return root


def every_age_is_right_or_missed(folder: Path, made: dict[str, Any]) -> None:
    """A scan has its own age, or none and somebody is told; and no scan is lost."""
    got = found(built(folder, made))
    told = " ".join(f"{f.what}: {f.problem}" for f in got.findings)
    scans = {scan(who, v): (who, v) for who, own in made["visits"].items() for v in own or [""]}
    have = {source.scan: source for source in got.sources}
    for name, (who, visit) in scans.items():
        if name not in have:  # left out, as one whose rows contradict each other
            assert who in made["twice"]
            assert made["other age"]
            assert "with other entries" in told
            continue
        source = have[name]
        assert source.participant == f"sub-{who}"
        several = made["sessions in"] == "nowhere" and len(made["visits"][who]) > 1
        age = source.row.get("age")
        if age is None:
            assert f"sub-{who}" in told
        elif not several:
            assert age == age_of(who, visit)
        else:
            assert "have scans of several sessions and no table of them" in told
    assert len({source.participant for source in got.sources}) <= len(made["visits"])


lenient = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=40, deadline=None, suppress_health_check=lenient)
@given(made=hospital())
def test_every_scan_of_any_hospital_has_its_own_age_or_none(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any]
) -> None:
    """However people, visits and tables are spelled."""
    every_age_is_right_or_missed(tmp_path_factory.mktemp("d"), made)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=lenient)
@given(made=hospital())
def test_every_scan_of_thousands_of_hospitals_has_its_own_age_or_none(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any]
) -> None:
    """The same of 2,000."""
    every_age_is_right_or_missed(tmp_path_factory.mktemp("d"), made)
