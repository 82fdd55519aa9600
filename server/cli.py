"""The coordinator's commands that need no site: studies, runs, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as RichTable

from common.durable import write_atomically
from common.errors import FolderError
from common.progress import console

study_app = typer.Typer(no_args_is_help=True, help="Write and check study files.")


@study_app.command("init")
def init(
    name: Annotated[str, typer.Argument(help="Name of the study; NAME.toml is written.")],
    kind: Annotated[str, typer.Option(help="Data kind: t1w or features.")] = "t1w",
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
) -> None:
    """Write a commented study file to fill in."""
    from server.templates import study_template

    text, path = study_template(name, kind), out / f"{name}.toml"
    if path.exists():
        raise FolderError(f"{path} exists; choose another name or remove it")
    write_atomically(path, text.encode())
    print(f"{path} is written; edit it, then: callosum study check {path}")


@study_app.command("check")
def check(file: Annotated[Path, typer.Argument(help="Study file.")]) -> None:
    """Check a study file and say in words what it will do."""
    from common.network import check_buildable
    from common.study import load_study
    from server.explain import explain

    study = load_study(file)
    check_buildable(study, file)
    print(explain(study))


@study_app.command("keys")
def show_keys() -> None:
    """List every key of a study file with its default and meaning."""
    from common.documentation import study_keys

    print(study_keys())


def show(folder: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]) -> None:
    """Show where a run stands: rounds, who answered, losses."""
    from server.run import read_run

    run = read_run(folder)
    for branch in run.branches():
        records = branch.records()
        table = RichTable(title=f"{run.study.name}: {branch.model}")
        for column in ("round", "answered", "refused", "seconds", "MB", "loss"):
            table.add_column(column)
        for record in records:
            size = sum(line["bytes"] for line in record["answered"].values()) / 1e6
            loss = ", ".join(f"{name} {value:.3f}" for name, value in record["loss"].items())
            mark = " DEGRADED" if record["degraded"] else ""
            refused = ", ".join(f"{site}: {code}" for site, code in record["refused"].items())
            table.add_row(
                f"{record['round']} of {run.study.pretraining.rounds}{mark}",
                ", ".join(record["answered"]),
                refused,
                f"{record['seconds']:.1f}",
                f"{size:.1f}",
                loss,
            )
        console.print(table)


def report(folder: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]) -> None:
    """Write RUN/report.html: one page, complete in itself."""
    from server.report import write_report
    from server.run import read_run

    print(f"report: {write_report(read_run(folder))}")
