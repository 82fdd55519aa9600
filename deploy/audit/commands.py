"""`callosum audit`: attacks on a finished run or a release, and what they found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, get_args

import click
import typer

from common.errors import FolderError
from common.runtime import command
from common.runtime.progress import console, say, tell
from server.report.audit import TABLE, Audit, Part, tables


def audit(  # noqa: PLR0913, PLR0917  an option each
    model: Annotated[Path, typer.Argument(help="A finished run or a release.", metavar="MODEL")],
    sites: Annotated[
        Path | None,
        typer.Option(
            help="Folder of site files whose people the auditor holds; without it two hospitals of "
            "the study's kind are made up."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for tables and trials; without it MODEL itself, if a run."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Mechanism, membership or inversion, and no other part; again."),
    ] = None,
    trials: Annotated[
        int, typer.Option(help="Games with canaries against the mechanism.", min=100, max=10**8)
    ] = 50_000,
    shadows: Annotated[
        int, typer.Option(help="Shadow models with privacy, and as many without.", min=6, max=4096)
    ] = 32,
    inverted: Annotated[
        int, typer.Option(help="People whose sample is made again from gradients.", min=1, max=1000)
    ] = 5,
    people: Annotated[
        int, typer.Option(help="People in each hospital that is made up.", min=20, max=100_000)
    ] = 150,
    seed: Annotated[
        int, typer.Option(help="Who is in which trial comes from it; noise never does.", min=0)
    ] = 0,
    minutes: Annotated[
        float, typer.Option(help="Begin no trial after so many minutes; 0: no limit.", min=0)
    ] = 0.0,
) -> None:
    """Attack a model: lower bounds of epsilon beside the accounted ones, membership, inversion.

    After any interruption the same command goes on. Exit code 5 if a bound exceeds the claim.
    """
    from deploy.audit.audit import Asked, audited

    command.fix_allocator(sys.orig_argv)
    known = get_args(Part)
    if unknown := sorted(set(only or ()) - set(known)):
        raise click.UsageError(f"--only is {unknown[0]}; there are: {', '.join(known)}")
    asked = Asked(
        parts=tuple(part for part in known if not only or part in only), sites=sites,
        trials=trials, shadows=shadows, inverted=inverted, people=people, seed=seed,
        minutes=minutes,
    )  # fmt: skip
    found = audited(model, asked, out)
    _show(found)
    say(f"figures: {(out or model) / TABLE}")
    if out is None:
        from server.report.page import write_report
        from server.run import read_run

        tell(f"report: {write_report(read_run(model))}")
    if found.broken:
        raise typer.Exit(FolderError.exit_code)


def _show(found: Audit) -> None:
    from server.report.terminal import table_in_text

    for table in tables(found):
        console.print(table_in_text(table.title, table.columns, table.rows))
    for remark in found.remarks:
        say(remark)
    if found.people:
        say(f"the auditor's people: {found.people}")
    tell(found.verdict)
