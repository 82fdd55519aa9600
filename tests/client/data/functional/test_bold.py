"""Kind `bold` on whole BIDS folders: what becomes a sample, with which label, and what is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from client.data.check import check
from client.data.cohort import open_cohort
from client.data.functional.bold import BoldReader
from client.data.prepare import prepare
from client.data.workers import prepare_one
from client.site import Site, load_site
from common.errors import DataError, ScanError
from common.kinds.bold import Bold
from common.study import Study, parse_study
from tests.client.data.functional.runs import (
    EVENTS,
    SHAPE,
    STATES,
    VOLUMES,
    brain,
    find,
    lit,
    prepared,
    save,
    series,
    study,
    told,
    write_events,
    write_run,
    write_table,
)

RUN = "sub-01/func/sub-01_task-hands_bold.nii.gz"


def left_out(root: Path, agreed: Bold.Study | None = None) -> str:
    """Why the only run gives nothing."""
    found = find(root, agreed)
    if not found.sources:
        return told(found)[RUN]
    data = agreed or study()
    outcome = prepare_one("bold", data, (np.dtype("float16"), data.shape), found.sources[0])
    assert outcome.status == "left out"
    return outcome.notes[0]


def test_a_sample_is_a_labelled_volume_and_shows_its_state(tmp_path: Path) -> None:
    """Five volumes of each block of ten seconds, lit where the state is."""
    write_run(tmp_path)
    found = prepared(tmp_path)
    assert found.samples.shape == (20, *SHAPE)
    assert found.samples.dtype == np.float16
    assert found.labels["hand"] == ["left"] * 5 + ["right"] * 5 + ["left"] * 5 + ["right"] * 5
    means = [
        [found.samples[np.array(found.labels["hand"]) == s][:, lit(o)].mean() for o in STATES]
        for s in STATES
    ]
    assert means[0][0] > 1
    assert means[0][1] < 0.3
    assert means[1][1] > 1
    assert means[1][0] < 0.3
    assert not found.samples[:, ~brain()].any()


def test_an_event_can_be_a_sample_the_mean_of_its_volumes(tmp_path: Path) -> None:
    """Windows, where single volumes are too noisy."""
    write_run(tmp_path)
    volumes, events = prepared(tmp_path), prepared(tmp_path, study(sample="event"))
    assert events.labels["hand"] == ["left", "right", "left", "right"]
    expected = volumes.samples.astype(float).reshape(4, 5, *SHAPE).mean(1)
    np.testing.assert_allclose(events.samples, expected, atol=2e-3)


def test_every_voxel_is_scaled_within_its_run(tmp_path: Path) -> None:
    """Over all volumes, not the labelled ones: one event throughout shows that."""
    write_run(tmp_path, events=[(0, 2 * VOLUMES, "left"), (500, 1, "right")])
    found = prepared(tmp_path, study(shift_s=0.0)).samples.astype(float)
    assert len(found) == VOLUMES
    np.testing.assert_allclose(found.mean(0)[brain()], 0, atol=0.01)
    np.testing.assert_allclose(found.std(0)[brain()], 1, atol=0.01)


def test_each_vocabulary_is_a_column_of_its_own(tmp_path: Path) -> None:
    """Sites with other tasks share a backbone; nobody's states are another head's misspelt ones."""
    write_run(tmp_path)
    write_run(tmp_path, "sub-01_task-pictures", events=[(10, 10, "Faces"), (40, 10, "house")])
    agreed = study(states={"hand": STATES, "picture": ("face", "house")})
    found = find(tmp_path, agreed, states={"Faces": "face"})
    hands, pictures = (BoldReader.prepare(agreed, source).labels for source in found.sources)
    assert set(hands["hand"]) == set(STATES)
    assert set(hands["picture"]) == {""}
    assert pictures["picture"] == ["face"] * 5 + ["house"] * 5
    assert set(pictures["hand"]) == {""}
    assert set(pictures["trial_type"]) == {"face", "house"}
    assert {"hand", "picture", "trial_type"} <= set(found.columns)


def test_without_a_vocabulary_every_trial_type_is_kept(tmp_path: Path) -> None:
    """For who looks before a study is agreed."""
    write_run(tmp_path)
    assert set(prepared(tmp_path, study(states={})).labels["trial_type"]) == set(STATES)


def test_what_check_counts_is_known_before_a_voxel_is_read(tmp_path: Path) -> None:
    """The events say it already."""
    write_run(tmp_path)
    (source,) = find(tmp_path).sources
    assert source.states["hand"] == ["left", "right"]


SITE = """name = "here"
role = "train"
[data]
kind = "bold"
root = "bids"
[targets.hand]
column = "hand"
[targets.age]
column = "age"
[targets.foot]
column = "foot"
"""


def federated(folder: Path) -> tuple[Study, Site]:
    """Two people, one of whom only ever moved the left hand, at a site of a study."""
    write_run(folder / "bids")
    write_run(folder / "bids", "sub-02_task-hands", events=EVENTS[:1])
    write_table(
        folder / "bids/participants.tsv", ("participant_id", "age"), [("01", 30), ("02", 40)]
    )
    table = {
        "name": "hands",
        "data": study(states={"hand": STATES, "foot": STATES[::-1]}).model_dump(mode="json"),
        "targets": {
            "hand": {"kind": "binary", "classes": STATES},
            "foot": {"kind": "binary", "classes": STATES[::-1]},
            "age": {"kind": "regression"},
        },
        "backbone": {"name": "deeplight", "variant": "2d-8"},
        "objective": {"name": "multitask", "targets": ["hand"]},
        "sites": {"train": ["here"]},
    }
    (folder / "site.toml").write_text(SITE)
    return parse_study(table, Path("s.toml")), load_site(folder / "site.toml")


def test_a_cohort_has_the_states_of_volumes_and_the_ages_of_people(tmp_path: Path) -> None:
    """And whoever checks first sees as many people of each class."""
    agreed, site = federated(tmp_path)
    counted = check(agreed, site)
    assert not counted.errors
    assert counted.targets["hand"].classes == {"left": 2, "right": 1}
    assert (counted.targets["hand"].participants, counted.targets["hand"].scans) == (2, 2)
    assert (counted.targets["age"].participants, counted.targets["age"].scans) == (2, 2)
    prepare(agreed, site, workers=1)
    cohort = open_cohort(agreed, site)
    assert cohort.participants == ("sub-01",) * 20 + ("sub-02",) * 5
    assert cohort.labels["hand"].tolist() == ([0] * 5 + [1] * 5) * 2 + [0] * 5
    assert cohort.labels["foot"].tolist() == ([1] * 5 + [0] * 5) * 2 + [1] * 5
    assert cohort.labels["age"].tolist() == [30] * 20 + [40] * 5


def test_no_person_straddles_a_split(tmp_path: Path) -> None:
    """A network that saw half of a run knows the other half."""
    agreed, site = federated(tmp_path)
    prepare(agreed, site, workers=1)
    cohort = open_cohort(agreed, site)
    of = [set(cohort.subset(cohort.indices(split, agreed.splits)).participants)
          for split in ("train", "validation", "test")]  # fmt: skip
    assert sum(len(people) for people in of) == len(set.union(*of)) == 2


def test_derivatives_are_read_with_their_masks_confounds_and_the_raw_events(tmp_path: Path) -> None:
    """As fMRIPrep writes them, with several spaces, surfaces and a reference image."""
    write_run(tmp_path, mask=False)
    folder = tmp_path / "derivatives/fmriprep/sub-01/func"
    for space in ("MNI152NLin6Asym", "T1w"):
        stem = f"sub-01_task-hands_space-{space}_desc"
        save(folder / f"{stem}-preproc_bold.nii.gz", series())
        save(folder / f"{stem}-brain_mask.nii.gz", brain().astype(float))
        save(folder / f"sub-01_task-hands_space-{space}_boldref.nii.gz", brain().astype(float))
        (folder / f"{stem}-preproc_bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    (folder / "sub-01_task-hands_space-fsaverage5_hemi-L_bold.func.gii").write_text("surface")
    motion = [(0.1 * (n % 2), "n/a" if n == 0 else 0.1) for n in range(VOLUMES)]
    write_table(folder / "sub-01_task-hands_desc-confounds_timeseries.tsv",
                ("trans_x", "framewise_displacement"), motion)  # fmt: skip
    agreed = study(align="world", confounds=("trans_x",))
    everything = find(tmp_path, agreed, derivative="derivatives/fmriprep")
    assert not any(finding.left_out for finding in everything.findings)  # surfaces, references
    (source,) = everything.sources
    assert "MNI152NLin6Asym_desc-preproc" in source.scan
    found = BoldReader.prepare(agreed, source)
    assert found.quality["displacement_mm"] == pytest.approx(0.1, abs=0.01)
    assert found.quality["volumes"] == VOLUMES
    assert not found.notes
    (source,) = find(tmp_path, derivative="derivatives/fmriprep").sources
    assert "space-T1w" in source.scan


def test_events_and_side_files_may_stand_above_the_runs_they_hold_for(tmp_path: Path) -> None:
    """BIDS lets one file speak for all runs of a task; the nearest one is believed."""
    write_run(tmp_path)
    for name in ("events.tsv", "bold.json"):
        shutil.move(
            tmp_path / "sub-01/func" / f"sub-01_task-hands_{name}", tmp_path / f"task-hands_{name}"
        )
    assert set(prepared(tmp_path).labels["hand"]) == set(STATES)
    write_events(tmp_path / "sub-01/func/sub-01_task-hands_events.tsv", [(10, 10, "right")])
    assert set(prepared(tmp_path).labels["hand"]) == {"right"}


def test_of_two_tables_in_a_folder_the_one_that_says_more_holds(tmp_path: Path) -> None:
    """And two that say as much are a doubt that nobody may resolve by the alphabet."""
    write_run(tmp_path, "sub-01_task-hands_acq-a_run-1")
    (tmp_path / "sub-01/func/sub-01_task-hands_acq-a_run-1_events.tsv").unlink()
    write_events(tmp_path / "task-hands_events.tsv", EVENTS[:1])
    write_events(tmp_path / "task-hands_run-1_events.tsv", EVENTS[1:2])
    assert set(prepared(tmp_path).labels["hand"]) == {"right"}
    write_events(tmp_path / "task-hands_acq-a_events.tsv", EVENTS[:1])
    found = find(tmp_path)
    assert not found.sources
    assert any("has several files task-hands_acq-a_events" in why for why in told(found).values())


def test_another_table_of_events_prepares_the_run_anew(tmp_path: Path) -> None:
    """Labels are kept beside the samples: they must not outlive what they were read from."""
    write_run(tmp_path)
    stamps = {
        find(tmp_path).sources[0].stamp,
        find(tmp_path, states={"L": "left"}).sources[0].stamp,
    }
    write_events(tmp_path / "sub-01/func/sub-01_task-hands_events.tsv", EVENTS[:1])
    stamps.add(find(tmp_path).sources[0].stamp)
    (tmp_path / "sub-01/func/sub-01_task-hands_bold.json").write_text('{"RepetitionTime": 2.001}')
    stamps.add(find(tmp_path).sources[0].stamp)
    assert len(stamps) == 4


def test_a_run_without_events_is_left_out_by_name(tmp_path: Path) -> None:
    """And the others stay."""
    write_run(tmp_path)
    write_run(tmp_path, "sub-02_task-hands")
    (tmp_path / "sub-01/func/sub-01_task-hands_events.tsv").unlink()
    found = find(tmp_path)
    assert [source.participant for source in found.sources] == ["sub-02"]
    assert told(found)[RUN].startswith("has no events table")


def test_a_wrong_repetition_time_leaves_a_run_out(tmp_path: Path) -> None:
    """Milliseconds are mended in words; another number is not."""
    write_run(tmp_path, said=2000)
    assert "in milliseconds; taken as 2 s" in " ".join(prepared(tmp_path).notes)
    write_run(tmp_path, said=2.5)
    assert "its header says a repetition time of 2 s, the file beside it 2.5 s" in left_out(
        tmp_path
    )
    with pytest.raises(ScanError, match="correct the wrong one"):
        BoldReader.inspect(study(), find(tmp_path).sources[0])


def test_a_header_in_milliseconds_is_read_as_it_says(tmp_path: Path) -> None:
    """NIfTI has a code for it."""
    write_run(tmp_path, tr_s=2000.0, unit="msec")
    assert not prepared(tmp_path).notes


def test_too_few_volumes_leave_a_run_out(tmp_path: Path) -> None:
    """A run that was broken off at once; also one volume that somebody called a run."""
    write_run(tmp_path, voxels=series(30))
    assert left_out(tmp_path) == "it has 30 volumes; at least 50 are needed"
    write_run(tmp_path, voxels=series(1)[..., 0])
    assert left_out(tmp_path) == "it has 1 volumes; at least 50 are needed"


def test_a_run_that_nobody_could_hold_is_refused_by_its_header(tmp_path: Path) -> None:
    """Small volumes by the thousand, each of which a fine grid makes large."""
    write_run(tmp_path, voxels=np.ones((2, 2, 2, 20_000)), mask=False)
    agreed = study(shape=(512, 512, 512))
    with pytest.raises(ScanError, match="it has 20,000 volumes, 2,684,354,560,000 voxels on"):
        BoldReader.inspect(agreed, find(tmp_path, agreed).sources[0])


def test_events_behind_the_end_are_named_and_nothing_else_is_lost(tmp_path: Path) -> None:
    """Of a run that was broken off."""
    write_run(tmp_path, events=[*EVENTS, (400, 10, "left")])
    found = prepared(tmp_path)
    assert len(found.samples) == 20
    assert "1 of its 5 events begin behind its end at 160 s" in found.notes[0]


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (np.stack([brain(), brain()], -1), "it has 2 volumes; one is needed"),
        (brain()[1:], "it is of another grid: 11 x 14 x 10 voxels of 8 x 8 x 8 mm"),
    ],
)
def test_a_mask_of_another_grid_or_of_two_volumes_leaves_a_run_out(
    tmp_path: Path, mask: np.ndarray, problem: str
) -> None:
    """With what the mask is and what it should be."""
    write_run(tmp_path)
    save(tmp_path / "sub-01/func/sub-01_task-hands_desc-brain_mask.nii.gz", mask.astype(float))
    assert problem in left_out(tmp_path)
    assert "sub-01_task-hands_desc-brain_mask.nii.gz" in left_out(tmp_path)


def test_a_run_without_a_mask_says_where_its_brain_is_from(tmp_path: Path) -> None:
    """Raw data sets have none."""
    write_run(tmp_path, mask=False)
    assert prepared(tmp_path).notes == ("has no brain mask; it is made of its mean image",)


def confounds(root: Path, moved: list[object]) -> None:
    write_table(root / "sub-01/func/sub-01_task-hands_desc-confounds_timeseries.tsv",
                ("framewise_displacement", "csf"), [(one, 1.0) for one in moved])  # fmt: skip


def test_a_person_who_moved_too_far_is_left_out_by_a_number(tmp_path: Path) -> None:
    """The limit is the study's, and 0 sets none."""
    write_run(tmp_path)
    confounds(tmp_path, ["n/a", *[0.9] * (VOLUMES - 1)])
    assert "moved 0.89 mm from volume to volume" in left_out(tmp_path)
    assert len(prepared(tmp_path, study(most_motion_mm=0.0)).samples) == 20


def test_volumes_behind_a_jump_are_no_samples_and_are_counted(tmp_path: Path) -> None:
    """One cough must not cost the run."""
    write_run(tmp_path)
    confounds(tmp_path, ["n/a", *(3.0 if n == 14 else 0.1 for n in range(1, VOLUMES))])
    found = prepared(tmp_path, study(most_jump_mm=1.0))
    assert len(found.samples) == 19
    assert found.notes[-1] == "1 volumes are left out: over 1 mm from the last"


def test_confounds_that_a_study_needs_must_be_there(tmp_path: Path) -> None:
    """A run that is cleaned less than the others would be told from them by that."""
    write_run(tmp_path)
    needs = study(confounds=("csf",))
    assert "has no confounds table; the study takes csf out" in left_out(tmp_path, needs)
    confounds(tmp_path, ["n/a", "n/a", *[0.1] * (VOLUMES - 2)])
    assert '"n/a" for framewise_displacement in line 3' in left_out(tmp_path, needs)


def test_motion_that_nobody_knows_is_told_once(tmp_path: Path) -> None:
    """A limit that holds for nobody must not look like one that everybody kept."""
    write_run(tmp_path)
    write_run(tmp_path, "sub-02_task-hands")
    assert told(find(tmp_path))["motion"].startswith("2 of 2 runs have no confounds table")


def test_echoes_of_one_run_are_one_run(tmp_path: Path) -> None:
    """Three echoes would be three people's worth of one person's head."""
    for echo in (1, 2):
        write_run(tmp_path, f"sub-01_task-hands_echo-{echo}")
    found = find(tmp_path)
    assert not found.sources
    assert any("in several versions" in problem for problem in told(found).values())
    assert len(find(tmp_path, entities={"echo": "2"}).sources) == 1


def test_words_that_lead_to_no_state_are_an_error_with_the_nearest(tmp_path: Path) -> None:
    """A slip in the site file would lose a class."""
    write_run(tmp_path)
    found = find(tmp_path, states={"L": "lefft"})
    assert 'did you mean "left"' in told(found)["data.states"]
    assert any(finding.error for finding in found.findings)


def test_one_mask_may_hold_for_all_runs_and_must_be_there(tmp_path: Path) -> None:
    """Some data sets have one in place of many."""
    write_run(tmp_path, mask=False)
    save(tmp_path / "mask.nii.gz", brain().astype(float))
    assert not prepared(tmp_path, mask="mask.nii.gz").notes
    with pytest.raises(DataError, match=r"data.mask names .*other.nii.gz, which is not there"):
        find(tmp_path, mask="other.nii.gz")


@pytest.mark.parametrize(
    ("states", "problem"),
    [
        ({"hand": ("left", "left")}, "hand lists a state twice"),
        ({"trial_type": ("a", "b")}, 'has a vocabulary "trial_type"'),
        ({"hand": ("left",)}, "at least 2 items"),
    ],
)
def test_vocabularies_that_cannot_be_are_refused(
    states: dict[str, tuple[str, ...]], problem: str
) -> None:
    """In the study file, before anyone prepares."""
    with pytest.raises(ValidationError, match=problem):
        study(states=states)
