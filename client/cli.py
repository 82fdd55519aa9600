"""`callosum-site`: the hospital's own command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common import command
from common.durable import write_atomically
from common.errors import DataError, FolderError
from common.progress import track

app = typer.Typer(
    no_args_is_help=True,
    help="A hospital's side of Callosum: describe, check and prepare its own data. "
    "Exit codes: 0 done, 2 usage, 3 settings, 4 data, 5 folder, 7 disk, 130 stopped.",
    pretty_exceptions_enable=False,
    add_completion=False,
)

SiteFile = Annotated[Path, typer.Option("--site", help="The site file.")]
StudyFile = Annotated[Path, typer.Option("--study", help="The study file.")]


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The site's name, as in the study.")],
    kind: Annotated[str, typer.Option(help="Data kind: t1w or features.")] = "t1w",
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
) -> None:
    """Write a commented site file to fill in."""
    from client.templates import site_template

    text, path = site_template(name, kind), out / "site.toml"
    if path.exists():
        raise FolderError(f"{path} exists; choose another folder or remove it")
    write_atomically(path, text.encode())
    print(f"{path} is written; edit it, then: callosum-site check --study STUDY")


@app.command()
def check(study: StudyFile, site: SiteFile = Path("site.toml")) -> None:
    """Read every scan header and phenotype row; say what is usable and what is wrong with which."""
    from client.data.check import check as check_data
    from client.site import load_site
    from common.study import load_study

    agreed, own = load_study(study), load_site(site)
    found = check_data(agreed, own)
    print(f"{own.name} ({own.role}): {found.participants} participants, {found.scans} scans")
    for name, count in found.targets.items():
        span = f"{count.span[0]:g} to {count.span[1]:g}" if count.span else ""
        classes = ", ".join(f"{word} {n}" for word, n in count.classes.items())
        print(f"  {name}: {count.participants} participants, {count.scans} scans  {span}{classes}")
    for finding in found.findings:
        print(f"  {'left out' if finding.left_out else 'note'}: {finding.what}: {finding.problem}")
    if found.participants < own.policy.minimum_cohort:
        raise DataError(
            f"{found.participants} participants are usable, policy.minimum_cohort is "
            f"{own.policy.minimum_cohort}; this site would decline ({site})"
        )


@app.command()
def prepare(
    study: StudyFile,
    site: SiteFile = Path("site.toml"),
    workers: Annotated[int, typer.Option(help="Processes; 0 takes all cores.", min=0)] = 0,
) -> None:
    """Prepare all scans for a study; only what is new or changed, and resumable."""
    from client.data.cohort import open_cohort
    from client.data.prepare import prepare as prepare_data
    from client.site import load_site
    from common.study import load_study

    agreed, own = load_study(study), load_site(site)
    total = len(agreed.kind.find(agreed.data, own.data, own.root).sources)
    with track(f"{own.name}: preparing, scans", total) as advance:
        folder = prepare_data(agreed, own, workers=workers or None, advance=advance)
    cohort = open_cohort(agreed, own)
    left_out = sum(finding.left_out for finding in cohort.findings)
    print(
        f"{own.name}: {len(set(cohort.participants))} participants, {len(cohort)} samples in "
        f"{folder}; {left_out} left out, see {folder / 'quality.tsv'}"
    )


@app.command("keys")
def show_keys() -> None:
    """List every key of a site file with its default and meaning."""
    from client.site import Site
    from common.documentation import site_keys

    print(site_keys(Site))


def main() -> None:
    """Entry point of `callosum-site`."""
    command.run(app, "callosum-site")
