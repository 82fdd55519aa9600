"""The coordinator's commands that need no site: studies, runs, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.errors import SENTENCES, FolderError
from common.runtime.durable import write_atomically
from common.runtime.progress import console, say, tell

study_app = typer.Typer(no_args_is_help=True, help="Write and check study files.")


@study_app.command("init")
def init(
    name: Annotated[str, typer.Argument(help="Name of the study; NAME.toml is written.")],
    kind: Annotated[
        str, typer.Option(help="Data kind: t1w, features, video, or another that is installed.")
    ] = "t1w",
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
) -> None:
    """Write a commented study file to fill in."""
    from server.templates import study_template

    text, path = study_template(name, kind), out / f"{name}.toml"
    if path.exists():
        raise FolderError(f"{path} exists; choose another name or remove it")
    write_atomically(path, text.encode())
    tell(f"{path} is written; edit it, then: callosum study check {path}")


@study_app.command("check")
def check(file: Annotated[Path, typer.Argument(help="Study file.")]) -> None:
    """Check a study file and say in words what it will do."""
    from common.study import load_study

    load_study(file)  # what is wrong with the file itself is said at once, before torch is loaded
    from server.federation.initial import explained

    tell(explained(file))


@study_app.command("plan")
def plan(
    file: Annotated[Path, typer.Argument(help="Study file with unit = participant in [privacy].")],
    people: Annotated[
        list[int] | None, typer.Option(help="Participants of a site, all splits together; again.")
    ] = None,
    census: Annotated[
        Path | None, typer.Option(help="Run folder whose census counted the sites' participants.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Cap to plan for, in place of privacy.epsilon.", min=0)
    ] = None,
) -> None:
    """Say what a private study will cost each site's people, and what a budget buys, beforehand."""
    from common.study import load_study
    from server import privacy_plan
    from server.report.participation import census as counted
    from server.report.terminal import table_in_text
    from server.run import read_run

    study = load_study(file)
    given = {f"{n} people": n for n in people or ()}
    if census is not None:
        given |= privacy_plan.people_of(study, counted(read_run(census)))
    found = privacy_plan.plans(study, given, epsilon, file)
    of_one = privacy_plan.of_one(found)
    console.print(table_in_text(f"{study.name}: one order", privacy_plan.OF_ONE, of_one))
    console.print(table_in_text("one run", privacy_plan.COLUMNS, privacy_plan.rows(found)))
    columns, lines = privacy_plan.rounds(found)
    console.print(table_in_text("epsilon as a run goes on", columns, lines))
    for text in privacy_plan.words(study, found):
        tell(text)


@study_app.command("start")
def start(
    file: Annotated[Path, typer.Argument(help="Study file that is to begin from a checkpoint.")],
    checkpoint: Annotated[
        Path, typer.Option("--from", help="A finished run, a release, or its final.safetensors.")
    ],
    take: Annotated[str, typer.Option(help="Its arrays that are taken: backbone or all.")] = (
        "backbone"
    ),
    leave: Annotated[
        list[str] | None, typer.Option(help="Beginning of names of arrays to draw anew; repeat.")
    ] = None,
) -> None:
    """Print the [start] table that lets a study begin from a checkpoint, lineage and all."""
    from server.federation.initial import start_table

    print(start_table(file, checkpoint, take, tuple(leave or ())), end="")


@study_app.command("keys")
def show_keys() -> None:
    """List every key of a study file with its default and meaning."""
    from common.documentation import study_keys

    tell(study_keys())


def show(folder: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]) -> None:
    """Show where a run stands: rounds, who answered, losses."""
    from server import overlap
    from server.report.live_view import ROUND, present_of, row_of
    from server.report.participation import census
    from server.report.terminal import table_in_text
    from server.run import lineage_told, read_run
    from server.run_files import read_refused
    from server.run_state import failure_of, read_state_file, state_of
    from server.site_findings import kept, without_labels

    run = read_run(folder)
    for branch in run.branches():
        rows = (row_of(record, run.study.pretraining.rounds) for record in branch.records())
        console.print(table_in_text(f"{run.study.name}: {branch.model}", ROUND, rows))
    for path in sorted(folder.rglob("refused.json")):
        for site, code in read_refused(path).items():
            phase = path.parent.relative_to(folder)
            say(f"{phase}: {site} did not take part: {code}: {SENTENCES.get(code, '')}")
    for text in lineage_told(run):
        say(f"lineage: {text}")
    overlaps = overlap.kept(folder).findings
    for text in (*without_labels(run.study, census(run)), *kept(folder), *overlaps):
        say(text)
    state = state_of(folder)
    if state.get("state") == "running":
        title, answered, *_ = present_of(read_state_file(folder / "progress.json"))
        say(f"now: {title}: {answered}")
    if state:
        error = state.get("error")
        say(f"the hub says: {state.get('state')}" + (f": {error}" if error else ""))
    elif error := failure_of(folder):
        say(f"it broke off: {error}")


def report(folder: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]) -> None:
    """Write RUN/report.html: one page, complete in itself."""
    from server.report.page import write_report
    from server.run import read_run

    tell(f"report: {write_report(read_run(folder))}")
