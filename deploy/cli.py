"""`callosum`: the coordinator's command line, with everything that stands up a federation."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any, Final

import click
import typer

from common.errors import FolderError
from common.runtime import command
from common.runtime.progress import console, say, tell, track
from deploy.audit.commands import audit
from deploy.hub import commands
from server import cli as server_cli

app = typer.Typer(
    no_args_is_help=True,
    help="Hospitals train brain-imaging networks together; every scan stays where it is. "
    "Exit codes: 0 done, 2 usage, 3 settings, 4 data, 5 folder, 6 quorum, 7 disk, 8 lineage, "
    "130 stopped (the same command resumes).",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(server_cli.study_app, name="study")
app.command()(server_cli.show)
app.command()(server_cli.report)
app.command()(commands.provision)
app.command()(commands.hub)
app.command()(commands.run)
app.command()(commands.runs)
app.command()(commands.stop)
app.command()(commands.books)
app.command()(audit)

_ON_DISK: Final = ("t1w", "bold", "connectome")  # kinds of hospitals that are written

Key = Annotated[
    Path | None,
    typer.Option(help="The coordinator's private key (PEM) to sign with; a hub's run finds it."),
]
RunFolder = Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the hospitals and the run.")] = Path("demo"),
    participants: Annotated[int, typer.Option(help="Participants in each hospital.", min=20)] = 180,
) -> None:
    """Five synthetic hospitals: four train together, each fine-tunes, the fifth judges."""
    from common.study import load_study

    command.fix_allocator(sys.orig_argv)
    with as_file(files("deploy") / "studies" / "demo.toml") as study_file:
        study = load_study(study_file)
        _write_hospitals(
            out / "hospitals",
            names=[*study.sites.train, *study.sites.heldout],
            heldout=study.sites.heldout,
            participants=participants,
            spacing_mm=study.data.spacing_mm,  # type: ignore[attr-defined]
            strength=1.0,
            seed=study.seed,
            threads=1,  # so small a network gains nothing by two, and loses tenfold on busy cores
        )
        _simulate(study_file, out / "hospitals", out / "run")


@app.command()
def simulate(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    sites: Annotated[Path, typer.Option(help="Folder whose site.toml files are the sites.")],
    out: Annotated[Path, typer.Option(help="Run folder; the same one resumes.")],
) -> None:
    """Run a whole study on this machine; after any interruption the same command resumes."""
    command.fix_allocator(sys.orig_argv)
    _simulate(study, sites, out)


@app.command()
def protocol(
    file: Annotated[Path, typer.Argument(help="Protocol file.")],
    out: Annotated[Path, typer.Option(help="Folder of all cells; the same one resumes.")],
    small: Annotated[bool, typer.Option("--small", help="The small protocol of the file.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Cells to run, such as 'ad-vit-*', and what they begin from; again."),
    ] = None,
) -> None:
    """Run networks by beginnings by tasks by shares by seeds; a page says where pretraining helps.

    After any interruption the same command goes on.
    """
    from deploy.protocols.page import format_protocol, outcome, write_page
    from deploy.protocols.protocol import cells, chosen, load_protocol
    from deploy.protocols.studies import Cells, check_cells

    command.fix_allocator(sys.orig_argv)
    read = load_protocol(file, small=small)
    every = cells(read)
    asked = chosen(every, only or [])
    check_cells(read, every, file)
    work = Cells(read, out, {})
    found = outcome(work, every, work.run(asked))
    page = write_page(out, found)
    tell(format_protocol(found))
    say(f"results: {out / 'cells.csv'}")
    tell(f"page: {page}")


@app.command()
def loso(
    studies: Annotated[list[Path], typer.Argument(help="Study files.", metavar="STUDY...")],
    sites: Annotated[Path, typer.Option(help="Folder whose site.toml files are the sites.")],
    out: Annotated[Path, typer.Option(help="Folder of all folds; the same one resumes.")],
    begin: Annotated[
        list[str] | None,
        typer.Option(
            help="STUDY=EARLIER: it begins from the backbone that the earlier one led to in the "
            "same fold; STUDY=EARLIER:all from all arrays; again."
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="What is compared; by default all that every study learns; again."),
    ] = None,
) -> None:
    """Leave one site out: every site judges once, and trains in all other folds.

    The folds give sites their roles, whatever site files say; no file is changed. After any
    interruption the same command goes on.
    """
    from deploy.loso.findings import targets_of
    from deploy.loso.folds import Folds, design
    from deploy.loso.page import format_outcome, outcome, write_page

    command.fix_allocator(sys.orig_argv)
    asked = design(studies, begin or [])
    compared = targets_of(asked, target or [])
    work, every = Folds(asked, sites, out), asked.folds()
    found = outcome(work, every, work.run(every), compared)
    page = write_page(out, found)
    tell(format_outcome(found))
    say(f"results: {out / 'folds.csv'} and {out / 'pairs.csv'}")
    tell(f"page: {page}")


@app.command(name="privacy-curve")
def privacy_curve(
    studies: Annotated[
        list[Path],
        typer.Argument(
            help="Study files, or files of [[settings]] of one study.", metavar="STUDY..."
        ),
    ],
    sites: Annotated[Path, typer.Option(help="Folder whose site.toml files are the sites.")],
    out: Annotated[Path, typer.Option(help="Folder of all points; the same one resumes.")],
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="Most that a run may cost; by default 50, 10, 8, 4, 2 and 1; again."),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Runs at each epsilon: noise is fresh in each.", min=1, max=100)
    ] = 1,
    begin: Annotated[
        Path | None,
        typer.Option(help="A finished run or release that private studies also begin from."),
    ] = None,
) -> None:
    """Draw what privacy costs: a whole run at each epsilon, with just the noise that it needs.

    Several studies are several settings, of which the best is named at each epsilon; one that is
    not private stands beside them. After any interruption the same command goes on.
    """
    from deploy.privacy_curve.page import format_outcome, outcome, write_page
    from deploy.privacy_curve.points import EPSILONS, Points, design

    command.fix_allocator(sys.orig_argv)
    asked = design(studies, epsilon or EPSILONS, repeats, begin)
    work, every = Points(asked, sites, out), asked.points()
    found = outcome(work, every, work.run(every))
    page = write_page(out, found)
    tell(format_outcome(found))
    say(f"results: {out / 'curve.csv'}")
    tell(f"page: {page}")


@app.command()
def maps(
    run: RunFolder,
    truth: Annotated[
        Path | None,
        typer.Option(help="Folder of state-NAME_activation.nii.gz: overlap is told beside chance."),
    ] = None,
) -> None:
    """Average sites' group maps of tuned networks; NIfTI and pictures in RUN/maps, and the report.

    For tasks with then = ["explain"], of scans. Sites send group maps if their policy allows it.
    """
    from deploy.maps import group_maps, write_maps
    from deploy.overlap import overlaps
    from server.report.page import write_report
    from server.run import read_run

    found = read_run(run)
    written = write_maps(found)
    for path in written:
        tell(str(path))
    if not written:
        say("no site has sent a map of scans; tasks ask by `then`, sites allow by policy.orders")
    if truth is not None and written:
        for one in overlaps(group_maps(found), found.study, truth):
            tell(
                f"{one.task}, {one.way}, {one.group}: Dice {one.dice:.3f} (by chance "
                f"{one.chance_dice:.3f}, p {one.p:.3f}), average precision {one.precision:.3f} "
                f"(by chance {one.chance_precision:.3f})"
            )
    tell(f"report: {write_report(found)}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run or a release.", metavar="MODEL")],
    sites: Annotated[
        Path,
        typer.Option(
            "--sites", "--site", help='A site file with role = "heldout", or a folder of such.'
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the answers; without it RUN/groups/GROUP, and RUN's page."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help='Name of these judges together; "later", or the one site\'s name.'),
    ] = None,
    key: Key = None,
) -> None:
    """Judge a finished model at sites that took no part; no earlier figure changes.

    A site that is found in the model's lineage, by name or by a single scan, is refused: exit 8.
    """
    from deploy.releases.judging import judge
    from server.report.page import format_tables, write_report
    from server.run import read_run

    command.fix_allocator(sys.orig_argv)
    folder = judge(model, sites, out, group, key)
    say(f"results: {folder / 'results.csv'}, and what they rest on: {folder / 'certificate.json'}")
    if out is None:
        tell(format_tables(read_run(model)))
        tell(f"report: {write_report(read_run(model))}")


@app.command()
def release(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="New folder for the release.")],
    key: Key = None,
    without_tokens: Annotated[
        bool,
        typer.Option(
            "--without-tokens",
            help="Leave tokens of the scans out: later judges are then compared as whole cohorts.",
        ),
    ] = False,
) -> None:
    """Put a finished model together for others: weights, study, lineage, results, model card."""
    from deploy.releases.release import write_release

    tell(f"release: {write_release(run, out, key, tokens=not without_tokens)}")


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(help="A release, a run, or the folder of an evaluation.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="The run or release that was judged, if it lies elsewhere by now."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="The coordinator's public keys (PEM), as you got them from a person."),
    ] = None,
) -> None:
    """Say what a certificate says, and whether weights, study and results are what it speaks of.

    Exit code 5 if anything does not hold.
    """
    from deploy.releases.verification import verified

    found = verified(folder, model, key)
    for claim in found:
        tell(claim.told)
    if any(claim.holds is False for claim in found):
        raise typer.Exit(FolderError.exit_code)


@app.command(name="catalogue")
def show_catalogue(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """List what a study may name: networks and their sizes, objectives, kinds, rules, methods."""
    from common.catalogue_listing import entries
    from server.report.terminal import format_catalogue

    found = entries()
    if as_json:
        print(json.dumps([asdict(entry) for entry in found], indent=1))
        return
    for table in format_catalogue(found):
        console.print(table)


@app.command()
def hospitals(  # noqa: PLR0913, PLR0917  an option each
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    names: Annotated[str, typer.Option(help="Names, separated by commas.")] = (
        "amber,birch,cedar,delta,elm"
    ),
    heldout: Annotated[str, typer.Option(help="Which of them are held out.")] = "elm",
    participants: Annotated[
        int, typer.Option(help="Participants in each, or clips.", min=1, max=200_000)
    ] = 150,
    spacing_mm: Annotated[
        float | None, typer.Option(help="Edge of a voxel in mm; 8 by default.", min=1, max=16)
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Scanner differences: 0 none, 1 usual, 2 hard.", min=0, max=5),
    ] = None,
    seed: Annotated[int, typer.Option(help="All chance comes from it.", min=0)] = 0,
    clinics: Annotated[
        str | None,
        typer.Option(
            help="T1w: which of them are clinics, where everyone is examined for the disease, "
            "and nobody at the others; by default half of each hospital's people are."
        ),
    ] = None,
    unrelated: Annotated[
        bool,
        typer.Option(
            "--unrelated",
            help="T1w: the negative control, a disease that shares nothing with age, sex or any "
            "other phenotype; pretraining on these cannot help with it.",
        ),
    ] = False,
    kind: Annotated[
        str,
        typer.Option(
            help="What they hold, on disk: t1w (scans), bold (functional runs), connectome (time "
            "series); or made on the fly: synthetic-t1w, synthetic-video."
        ),
    ] = "t1w",
) -> None:
    """Write synthetic hospitals: BIDS folders of scans or series, or sources without any."""
    from deploy.hospitals.sources import KINDS, write_sources

    chosen, apart = _listed(names), _listed(heldout)
    if kind != "t1w" and (clinics is not None or unrelated):
        raise click.UsageError(f"--clinics and --unrelated are for kind t1w; --kind is {kind}")
    if kind in _ON_DISK:
        if kind == "connectome" and spacing_mm is not None:
            raise click.UsageError("connectomes have no voxels; leave --spacing-mm away")
        grid = {} if kind == "connectome" else {"spacing_mm": spacing_mm or 8.0}
        disease: dict[str, object] = {"shared_modes": False} if unrelated else {}
        if clinics is not None:
            disease |= {"clinics": _listed(clinics), "pool": 0.0}
        _write_hospitals(
            out,
            kind=kind,
            names=chosen,
            heldout=apart,
            participants=participants,
            strength=1.0 if strength is None else strength,
            seed=seed,
            **grid,
            **disease,
        )
    elif kind not in KINDS:
        there = ", ".join((*_ON_DISK, *KINDS))
        raise click.UsageError(f"--kind is {kind}; there are: {there}")
    elif spacing_mm is not None or strength is not None:
        raise click.UsageError(f"what is {kind} has --spacing-mm and --strength in the study")
    else:
        write_sources(out, kind=kind, names=chosen, heldout=apart, number=participants, seed=seed)
    tell(f"hospitals: {out}")


@app.command()
def sites(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    pattern: Annotated[Path, typer.Option(help="Site file without name, role and rows.")],
    data: Annotated[Path, typer.Option(help="Folder that the pattern's paths start from.")],
    out: Annotated[Path, typer.Option(help="Folder to write the site files to.")],
    by: Annotated[str, typer.Option(help="Column that names the site.")] = "site",
) -> None:
    """Make one site file for each site of a data set that holds several."""
    from common.study import load_study
    from deploy.site_files import write_site_files

    written = write_site_files(load_study(study), pattern, data, by, out)
    tell(f"{len(written)} site files in {out}")


def main() -> None:
    """Entry point of `callosum`."""
    command.run(app, "callosum")


def _listed(names: str) -> list[str]:
    """Names that commas part."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _write_hospitals(
    out: Path, *, names: list[str], participants: int, kind: str = "t1w", **settings: object
) -> None:
    from deploy.hospitals.connectomes import write_connectomes
    from deploy.hospitals.dataset import write_hospitals
    from deploy.hospitals.task_fmri import write_task_fmri

    writers: dict[str, Any] = {
        "t1w": write_hospitals, "bold": write_task_fmri, "connectome": write_connectomes
    }  # fmt: skip
    with track("writing hospitals, participants", len(names) * participants) as advance:
        writers[kind](out, names=names, participants=participants, advance=advance, **settings)


def _simulate(study: Path, sites: Path, out: Path) -> None:
    from common.study import load_study
    from deploy.local import simulate
    from deploy.maps import write_maps
    from deploy.pictures import learnt, scans
    from server.report.page import format_tables, write_report

    run = simulate(study, sites, out, workers=None)
    write_maps(run)
    page = write_report(run, [*scans(load_study(study), sites), *learnt(run, sites)])
    tell(format_tables(run))
    say(f"results: {run.folder / 'results.csv'}")
    tell(f"report: {page}")
