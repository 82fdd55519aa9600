"""Leaks planted on purpose, each with the guard that must catch it: `make leaks` prints them.

Every plant makes an evaluation look better than it is, by letting people judge a model that has
seen them. What is caught is told in the words that a user would read; "" is a leak that got through.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomli_w

from client.data.check import check
from client.data.cohort import open_cohort
from client.data.prepare import prepare
from client.site import load_site
from common.errors import LineageError
from common.study import load_study
from deploy.local import simulate
from deploy.releases.judging import judge
from deploy.releases.release import write_release
from server.checkpoints import load_checkpoint
from server.federation.initial import start_table
from server.overlap import kept
from server.results import TOGETHER, measurements
from server.run import Run
from server.run_files import read_json
from tests.conftest import Federation, overridden, write_federation, write_table_site

STUDY: Final[dict[str, Any]] = {
    "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
    "objective.targets": ["age"],
    "pretraining.rounds": 1,
    "evaluation.head": False,
    "evaluation.baselines": False,
}
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Ground:
    """A small federation, and its finished run."""

    made: Federation
    run: Run

    @property
    def sites(self) -> Path:
        return self.made.sites


def ground(folder: Path) -> Ground:
    """Two hospitals that train and one that judges, done."""
    made = write_federation(folder, STUDY)
    return Ground(made, made.simulate())


def site_with(sites: Path, name: str, rows: Rows, role: str = "heldout") -> Path:
    """A site file whose table has these rows, under names of its own."""
    folder = sites / name
    folder.mkdir(parents=True)
    renamed = [{**row, "participant_id": f"{name}-{n}"} for n, row in enumerate(reversed(rows))]
    write_rows(folder / "table.csv", renamed)
    table = {
        "name": name, "role": role, "secret": "in the open",
        "data": {"kind": "features", "table": "table.csv"},
        "targets": {target: {"column": target} for target in ("age", "sex", "diagnosis")},
        "device": {"kind": "cpu", "threads": 1},
    }  # fmt: skip
    (folder / "site.toml").write_text(tomli_w.dumps(table))
    return folder / "site.toml"


def rows_of(site: Path) -> Rows:
    with (site / "table.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def refused(act: Callable[[], object]) -> str:
    """Why something was refused for its lineage; "" if it was done."""
    try:
        act()
    except LineageError as error:
        return str(error)
    return ""


def left_out(run: Run, site: str) -> str:
    """Why a held-out site of a study did not judge."""
    if read_json(run.folder / "census.json")[site]["refused"] != "ROLE":
        return ""
    return "; ".join(text for text in kept(run.folder).findings if text.startswith(site))


# Judges that trained.


def the_site_itself(on: Ground, folder: Path) -> str:
    """A training site comes back as a judge, under another name, all people renamed."""
    site = site_with(folder, "renamed", rows_of(on.sites / "alpha"))
    return refused(lambda: judge(on.run.folder, site, folder / "out"))


def most_of_its_scans(on: Ground, folder: Path) -> str:
    """The same with one scan fewer, so that no fingerprint of the whole is the same."""
    site = site_with(folder, "renamed", rows_of(on.sites / "alpha")[1:])
    return refused(lambda: judge(on.run.folder, site, folder / "out"))


def one_scan_more(on: Ground, folder: Path) -> str:
    """The same with one scan more, of somebody whom nobody knows."""
    more = rows_of(on.sites / "omega")[:1]
    site = site_with(folder, "renamed", [*rows_of(on.sites / "alpha"), *more])
    return refused(lambda: judge(on.run.folder, site, folder / "out"))


def one_scan_of_many(on: Ground, folder: Path) -> str:
    """One scan of a training site under another name, among forty that are new."""
    write_table_site(folder / "new", "sigma")
    rows = [*rows_of(folder / "new/sites/sigma"), *rows_of(on.sites / "alpha")[:1]]
    site = site_with(folder, "renamed", rows)
    return refused(lambda: judge(on.run.folder, site, folder / "out"))


def a_judge_of_the_study(_: Ground, folder: Path) -> str:
    """The study's own held-out site holds some of a training site's scans: before any training."""
    made = write_federation(folder, STUDY)
    plant(made.sites / "omega", rows_of(made.sites / "alpha")[:5])
    run = made.simulate()
    return left_out(run, "omega")


# Judges of whom something else went in.


def its_statistics(_: Ground, folder: Path) -> str:
    """A site's sums settled the constants; then it trained nothing, and judges under a new name."""
    made = write_federation(folder, {**STUDY, "sites.quorum": 1})
    forbid(made.sites / "beta" / "site.toml", "train")
    run = made.simulate()
    site = site_with(folder / "more", "renamed", rows_of(made.sites / "beta")[1:])
    return refused(lambda: judge(run.folder, site, folder / "out"))


def its_statistics_by_name(_: Ground, folder: Path) -> str:
    """The same, under its own name, in a study that begins from the first and holds it out."""
    made = write_federation(folder, {**STUDY, "sites.quorum": 1})
    forbid(made.sites / "beta" / "site.toml", "train")
    run = made.simulate()
    later = following(made, "later", {"train": ["alpha"], "heldout": ["beta"]})
    return refused(lambda: start_table(later, run.folder, "backbone", ()))


def its_columns_harmonised(_: Ground, folder: Path) -> str:
    """ComBat was fitted with a site's columns; it trained nothing, and judges under a new name."""
    combat = {"backbone.harmonisation": "combat", "backbone.covariates": ["age"]}
    made = write_federation(
        folder, {**STUDY, **combat, "sites.quorum": 1}, site={"policy.sums_of_few": True}
    )
    forbid(made.sites / "beta" / "site.toml", "train")
    run = made.simulate()
    site = site_with(folder / "more", "renamed", rows_of(made.sites / "beta")[1:])
    why = refused(lambda: judge(run.folder, site, folder / "out"))
    lineage = load_checkpoint(run.federated.final, run.study).lineage
    told = [text for text in lineage.told() if "harmonisation from" in text and "beta" in text]
    return f"{why}; {told[0]}" if why and told else ""


def its_figures_chose(on: Ground, folder: Path) -> str:
    """Rounds were stopped where a held-out site's figures were best, and it judges the outcome."""
    sites = {**STUDY["sites"], "chosen_on": ["omega"]}
    study = overridden(on.made.base, {**STUDY, "sites": sites})
    (folder / "study.toml").write_text(tomli_w.dumps(study))
    return refused(lambda: load_study(folder / "study.toml"))


def its_figures_chose_before(_: Ground, folder: Path) -> str:
    """They chose in the study before, and the site judges what began from its outcome."""
    sites = {"train": ["alpha"], "heldout": ["beta"], "chosen_on": ["omega"]}
    made = write_federation(folder, {**STUDY, "sites": sites})
    run = made.simulate()
    later = following(made, "later", {"train": ["alpha"], "heldout": ["omega"]})
    return refused(lambda: start_table(later, run.folder, "backbone", ()))


def a_release_before(on: Ground, folder: Path) -> str:
    """A study begins from a release of a run that had seen the site, and holds its scans out."""
    release = write_release(on.run.folder, folder / "release")
    made = write_federation(folder, {**STUDY, "sites": {"train": ["gamma"], "heldout": ["delta"]}})
    write_rows(made.sites / "delta" / "table.csv", rows_of(on.sites / "alpha")[1:])
    study = made.study_file
    start = start_table(study, release, "backbone", ())
    made.changes["start"] = tomllib.loads(start)["start"]
    run = simulate(made.study_file, made.sites, folder / "run")
    return left_out(run, "delta")


# The same people twice.


def a_person_at_two_sites(_: Ground, folder: Path) -> str:
    """One person trains at two sites, or trains at one and tests at the other."""
    made = write_federation(folder, STUDY)
    plant(made.sites / "beta", rows_of(made.sites / "alpha")[:1])
    told = [text for text in kept(made.simulate().folder).findings if "learnt from twice" in text]
    return "; ".join(told)


def a_person_who_judges_elsewhere(_: Ground, folder: Path) -> str:
    """A person of a training site was scanned again at the judge's: no scan is shared."""
    made = write_federation(folder, STUDY)
    for place, name in enumerate(("alpha", "beta", "omega")):
        table = made.sites / name / "table.csv"
        number = [f"{name}{n}" if n else str(place % 2) for n in range(40)]
        rows = zip(number, rows_of(table.parent), strict=True)
        write_rows(table, [{**row, "number": one} for one, row in rows])
        file = table.parent / "site.toml"
        keys = {"overlap_key": "agreed", "person_column": "number"}
        file.write_text(tomli_w.dumps(overridden(tomllib.loads(file.read_text()), keys)))
    return left_out(made.simulate(), "omega")


def a_judge_and_its_copies(_: Ground, folder: Path) -> str:
    """A judge, its copy, and its copy less one scan: one hospital that would count as three."""
    names = ["omega", "psi", "chi"]
    made = write_federation(folder, {**STUDY, "sites": {"train": ["alpha"], "heldout": names}})
    rows = rows_of(made.sites / "omega")
    for name, copied in (("psi", rows), ("chi", rows[1:])):
        renamed = [{**row, "participant_id": f"{name}{n}"} for n, row in enumerate(copied)]
        write_rows(made.sites / name / "table.csv", renamed)
    run = made.simulate()
    together = [row for row in measurements(run) if row.site == TOGETHER]
    return "" if together else "; ".join(kept(run.folder).copies.values())


def a_scan_in_two_splits(_: Ground, folder: Path) -> str:
    """One scan under two names at one site, with other labels: one would train, the other test."""
    made = write_federation(folder, STUDY)
    rows = rows_of(made.sites / "alpha")
    again = [
        {
            **row,
            "participant_id": f"again-{n}",
            "sex": "male" if row["sex"] == "female" else "female",
        }
        for n, row in enumerate(rows)
    ]
    write_rows(made.sites / "alpha" / "table.csv", [*rows, *again])
    study, site = made.study, load_site(made.sites / "alpha" / "site.toml")
    prepare(study, site)
    cohort = open_cohort(study, site)
    splits = [
        {cohort.contents[index] for index in cohort.indices(split, study.splits)}
        for split in ("train", "validation", "test")
    ]
    twice = sum(map(len, splits)) - len(set().union(*splits))
    told = [one.problem for one in check(study, site).findings if "contradict" in one.problem]
    return told[0] if told and not twice and len(told) == len(again) else ""


LEAKS: Final[tuple[Callable[[Ground, Path], str], ...]] = (
    the_site_itself, most_of_its_scans, one_scan_more, one_scan_of_many, a_judge_of_the_study,
    its_statistics, its_statistics_by_name, its_columns_harmonised, its_figures_chose, its_figures_chose_before,
    a_release_before, a_person_at_two_sites, a_person_who_judges_elsewhere, a_judge_and_its_copies, a_scan_in_two_splits,
)  # fmt: skip


def plant(site: Path, rows: Rows) -> None:
    """Put rows of another site among a site's own, under new names."""
    planted = [{**row, "participant_id": f"planted-{n}"} for n, row in enumerate(rows)]
    write_rows(site / "table.csv", [*rows_of(site), *planted])


def forbid(file: Path, kind: str) -> None:
    """Take a kind of order from a site's policy."""
    table = tomllib.loads(file.read_text())
    orders = [one for one in load_site(file).policy.orders if one != kind]
    file.write_text(tomli_w.dumps(overridden(table, {"policy.orders": orders})))


def following(made: Federation, name: str, sites: dict[str, Any]) -> Path:
    """A study file beside the first, of the same data and network."""
    path = made.folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(overridden(made.base, {**STUDY, "sites": sites, "name": name})))
    return path


def main() -> int:
    """Print every leak, and who caught it; 1 if one got through."""
    through = 0
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "ground").mkdir()
        on = ground(Path(place) / "ground")
        for leak in LEAKS:
            folder = Path(place) / leak.__name__
            folder.mkdir()
            caught = leak(on, folder)
            through += not caught
            print(f"{'caught' if caught else 'GOT THROUGH':12}{leak.__doc__}\n{'':12}{caught}\n")
    print(f"{len(LEAKS) - through} of {len(LEAKS)} caught")
    return min(through, 1)


if __name__ == "__main__":
    sys.exit(main())
