"""`callosum-site`: the hospital's own command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from client.site import Site
from common.errors import DataError, FolderError
from common.printable import printable
from common.runtime import command
from common.runtime.durable import write_atomically
from common.runtime.progress import say, tell, track

app = typer.Typer(
    no_args_is_help=True,
    help="A hospital's side of Callosum: describe, check and prepare its own data; approve "
    "studies; run the agent and the courier; see what was spent and what left. "
    "Exit codes: 0 done, 1 declined, 2 usage, 3 settings, 4 data, 5 folder, 7 disk, 130 stopped.",
    pretty_exceptions_enable=False,
    add_completion=False,
)
receipts_app = typer.Typer(invoke_without_command=True)
app.add_typer(receipts_app, name="receipts")

SiteFile = Annotated[Path, typer.Option("--site", help="The site file.")]
StudyFile = Annotated[Path, typer.Option("--study", help="The study file.")]
KitOption = Annotated[Path | None, typer.Option("--kit", help="The site's kit.")]
SiteOption = Annotated[Path | None, typer.Option("--site", help="The site file, without a kit.")]
KitFolder = Annotated[Path, typer.Option("--kit", help="The site's kit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The site's name, as in the study.")],
    kind: Annotated[
        str, typer.Option(help="Data kind: t1w, features, video, or another that is installed.")
    ] = "t1w",
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
) -> None:
    """Write a commented site file to fill in."""
    from client.templates import site_template

    text, path = site_template(name, kind), out / "site.toml"
    if path.exists():
        raise FolderError(f"{path} exists; choose another folder or remove it")
    write_atomically(path, text.encode())
    tell(f"{path} is written; edit it, then: callosum-site check --study STUDY")


@app.command()
def check(study: StudyFile, kit: KitOption = None, site: SiteOption = None) -> None:
    """Read every scan header and phenotype row; say what is usable and what is wrong with which.

    Without --kit and --site the site file is site.toml in this folder.
    """
    from client.authority.consent import check_data_kind
    from client.data.check import check as check_data
    from common.study import load_study

    agreed, own = load_study(study), _site(kit, site or (None if kit else Path("site.toml")))
    check_data_kind(own, agreed)
    found = check_data(agreed, own)
    tell(f"{own.name} ({own.role}): {found.participants} participants, {found.scans} scans")
    for name, count in found.targets.items():
        span = f"{count.span[0]:g} to {count.span[1]:g}" if count.span else ""
        classes = ", ".join(f"{word} {n}" for word, n in count.classes.items())
        tell(f"  {name}: {count.participants} participants, {count.scans} scans  {span}{classes}")
    for join in found.joins:
        tell(f"  {join.told}")
    for finding in sorted(found.findings, key=lambda one: not one.error):
        tell(f"  {finding.grade}: {finding.what}: {finding.problem}")
    if found.participants < own.policy.minimum_cohort:
        raise DataError(
            f"{found.participants} participants are usable, policy.minimum_cohort is "
            f"{own.policy.minimum_cohort}; this site would decline ({own.file})"
        )
    if found.errors:
        raise DataError(
            f"what {own.file} promises is not there: {found.errors[0].what}: "
            f"{found.errors[0].problem}"
            + (f" (and {len(found.errors) - 1} more above)" if len(found.errors) > 1 else "")
        )


@app.command()
def prepare(
    study: StudyFile,
    kit: KitOption = None,
    site: SiteOption = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes all cores.", min=0)] = 0,
    *,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Write a page that shows every scan; it stays here.")
    ] = False,
    sheet_file: Annotated[
        Path | None, typer.Option(help="Where the page goes; by default beside the prepared data.")
    ] = None,
) -> None:
    """Prepare all scans for a study; only what is new or changed, and resumable.

    Without --kit and --site the site file is site.toml in this folder.
    """
    from client.authority.consent import check_data_kind
    from client.contact_sheet import page
    from client.data.cohort import open_cohort
    from client.data.prepare import prepare as prepare_data
    from client.data.reader import find_sources, is_lazy
    from common.study import load_study

    agreed, own = load_study(study), _site(kit, site or (None if kit else Path("site.toml")))
    check_data_kind(own, agreed)
    if is_lazy(agreed):
        tell(f"{own.name}: {agreed.kind_name} is made whenever it is needed; nothing to prepare")
        return
    if sheet or sheet_file:
        page.check_shows(agreed)
    total = len(find_sources(agreed, own).sources)
    with track(f"{own.name}: preparing, scans", total) as advance:
        folder = prepare_data(agreed, own, workers=workers or None, advance=advance)
    cohort = open_cohort(agreed, own)
    left_out = sum(finding.left_out for finding in cohort.findings)
    tell(
        f"{own.name}: {len(set(cohort.participants))} participants, {len(cohort)} samples in "
        f"{folder}; {left_out} left out, see {folder / 'quality.tsv'}"
    )
    if sheet or sheet_file:
        path = sheet_file or folder.parent / page.NAME
        page.write_sheet(agreed, own, folder, cohort.findings, path)
        tell(f"  every scan is on {path}: look at it, and keep it here")
    for finding in cohort.findings:
        if finding.error:
            tell(f"  {finding.grade}: {finding.what}: {finding.problem}")


@app.command()
def approve(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    kit: KitOption = None,
    site: SiteOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Approve without being asked.")] = False,
) -> None:
    """Show what a study asks of this site, and approve it; without approval nothing is done."""
    from client.authority import approvals
    from client.authority.consent import consent, limits_of
    from client.data.reader import find_sources
    from common.explain import explain
    from common.network.buildable import check_buildable
    from common.study import load_study

    own, agreed = _site(kit, site), load_study(study)
    check_buildable(agreed, study, limits_of(own))
    sources = find_sources(agreed, own).sources
    people = len({source.participant for source in sources})
    asked = consent(own, agreed, len(sources), people)
    tell("\n".join([explain(agreed), "", *asked.lines]))
    if not yes and not click.confirm(f"\nDoes {own.name} approve this?", default=False):
        say("not approved; orders of this study will be refused with STUDY_UNKNOWN")
        raise typer.Exit(1)
    approval = approvals.approve(own, study, asked.report_bytes)
    tell(f"approved: {approval.name}, digest {approval.digest}, by {approval.by}")


@app.command()
def identity(
    kit: KitOption = None,
    site: SiteOption = None,
    peers: Annotated[
        Path | None,
        typer.Option(help="The list of all training sites' identities, to know them by."),
    ] = None,
) -> None:
    """Show the identity that secure sums know this site by, and the number of those it knows."""
    from client.secure_sums.peers import PEERS, line_of_identity, peers_of, take_up
    from common.runtime.private_folder import own_folder

    own = _site(kit, site)
    own_folder(own.state)
    tell(line_of_identity(own))
    if peers is None and not (own.state / PEERS).exists():
        say("no list of the other sites was taken up yet: callosum-site identity --peers FILE")
        return
    known = take_up(own, peers) if peers is not None else peers_of(own)
    for name, key in sorted(known.known.items()):
        say(f"known: {name} {key.hex()}")
    tell(
        f"number of all {len(known.known)}: {known.number(known.known)}; it must be the same at "
        "each of them: compare it by telephone"
    )


@app.command()
def studies(kit: KitOption = None, site: SiteOption = None, as_json: AsJson = False) -> None:
    """List the studies that this site has approved."""
    from client.authority.approvals import approved

    found = approved(_site(kit, site))
    if as_json:
        _print_json([asdict(approval) for approval in found])
        return
    _print_table(
        "approved studies",
        ("study", "digest", "approved", "by", "file"),
        [(each.name, each.digest[:12], each.approved, each.by, each.file) for each in found],
    )


@app.command()
def revoke(
    study: Annotated[str, typer.Argument(help="The study's name, or how its digest begins.")],
    kit: KitOption = None,
    site: SiteOption = None,
) -> None:
    """Take an approval back; the study's orders are refused from now on."""
    from client.authority import approvals

    gone = approvals.revoke(_site(kit, site), study)
    tell(f"revoked: {gone.name}, digest {gone.digest}; what left before is in the receipts")


@app.command()
def pause(
    reason: Annotated[str, typer.Option(help="Why, for whoever resumes.")],
    kit: KitOption = None,
    site: SiteOption = None,
) -> None:
    """Refuse every order from now on, and let no answer out, until `resume`."""
    from client.authority import approvals

    own = _site(kit, site)
    approvals.pause(own, reason)
    tell(f"{own.name} is paused; callosum-site resume ends it")


@app.command()
def resume(kit: KitOption = None, site: SiteOption = None) -> None:
    """End a pause."""
    from client.authority import approvals

    own = _site(kit, site)
    tell(f"{own.name} {'goes on' if approvals.resume(own) else 'was not paused'}")


@app.command()
def ledger(kit: KitOption = None, site: SiteOption = None, as_json: AsJson = False) -> None:
    """Show how often orders learnt from this site's people, what privacy it cost, what is left."""
    from client.authority.ledger import read_ledger
    from client.authority.privacy_words import COLUMNS, costs, statement

    own = _site(kit, site)
    account = read_ledger(own.state / "ledger.sqlite")
    most, spent = own.policy.most_exposures, account.spent
    private = costs(own, account)
    if as_json:
        limit = {"most": most, "left": max(0, most - spent) if most else None}
        counts = {"spent": spent, "taken_over": account.taken_over, **limit}
        listed = {"exposures": [asdict(e) for e in account.exposures]}
        _print_json({**counts, **listed, "private": [one.as_json for one in private]})
        return
    _print_table(
        f"training orders carried out at {own.name}",
        ("study", "run", "model", "kind", "orders", "answered", "first", "last"),
        _by_run(account.exposures),
    )
    left = (
        f"{max(0, most - spent)} of {most} left" if most else "policy.most_exposures sets no limit"
    )
    taken = f" ({account.taken_over} taken over)" if account.taken_over else ""
    tell(f"spent: {spent}{taken} over all studies and runs; {left}")
    if private:
        _print_table("private training", COLUMNS, [one.row for one in private])
        tell("\n".join(statement(own, account)))


@app.command()
def books(
    kit: KitOption = None,
    site: SiteOption = None,
    exposures: Annotated[
        int | None, typer.Option(help="Count to go on from, where the one seen cannot be.", min=0)
    ] = None,
    copy: Annotated[
        Path | None,
        typer.Option(help="The ledger.sqlite of a copy that ran: what it spent is added."),
    ] = None,
    *,
    accept: Annotated[
        bool, typer.Option("--accept", help="Go on, with the count that the coordinator saw.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Accept without being asked.")] = False,
) -> None:
    """Show whether this site's books are those that the coordinator last saw; decide if not."""
    from client.authority import books as kept

    own = _site(kit, site)
    tell("\n".join(kept.standing(kept.account_of(own))))
    if not accept:
        return
    if not yes and not click.confirm(f"\nDoes no other copy of {own.name} run?", default=False):
        say("not accepted; every order is refused with BOOKS until it is")
        raise typer.Exit(1)
    tell(kept.accept(own, exposures, copy))


@app.command()
def models(kit: KitOption = None, site: SiteOption = None, as_json: AsJson = False) -> None:
    """Show the tuned models that are kept here: task, method, score, and how training went."""
    from client.learning.tuned_models import kept_models

    own = _site(kit, site)
    found = kept_models(own.state / "runs")
    if as_json:
        _print_json([asdict(model) for model in found])
        return
    _print_table(
        f"tuned models kept at {own.name}",
        ("run", "task", "start", "method", "people", "repeat", "metric", "score", "epochs", "rate"),
        [model.row() for model in found],
    )


@app.command()
def maps(
    study: StudyFile,
    kit: KitOption = None,
    site: SiteOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder that gets maps; by default the site's state.")
    ] = None,
    person: Annotated[
        list[str] | None, typer.Option(help="Whose, such as sub-01; by default test people; again.")
    ] = None,
    run: Annotated[str, typer.Option(help="How the run's name begins, as models shows it.")] = "",
) -> None:
    """Draw where tuned networks look in single people, for this site's own eyes.

    NIfTI, and glass brains of scans that were laid on MNI152. Nothing of it ever leaves.
    """
    from client.learning.person_maps import write_person_maps
    from client.service.agent_pool import open_agent
    from common.runtime.private_folder import own_folder
    from common.study import load_study

    agreed, own = load_study(study), _site(kit, site)
    cohort = open_agent(agreed, own).cohort
    folder = (out or own.state) / "maps"  # ours alone: what it holds is closed to others
    own_folder(folder)
    number = 0
    for path in write_person_maps(agreed, own, cohort, folder, person or (), run):
        number += 1
        say(str(path))
    tell(f"{own.name}: {number} maps of single people in {folder}; keep them here")


@receipts_app.callback()
def receipts(
    context: typer.Context,
    kit: KitOption = None,
    site: SiteOption = None,
    last: Annotated[int, typer.Option(help="How many of the latest; 0 shows all.", min=0)] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what left this site and when; `receipts verify` checks that nothing was changed."""
    if context.invoked_subcommand is not None:
        context.obj = (kit, site)
        return
    from client.authority.receipts import read_receipts

    own = _site(kit, site)
    found = list(read_receipts(own.state / "receipts"))[-last:]
    if as_json:
        _print_json(found)
        return
    _print_table(
        f"what left {own.name}",
        ("no", "time", "study", "kind", "model", "round", "refusal", "arrays", "numbers", "kB"),
        [_receipt_row(receipt) for receipt in found],
    )


@receipts_app.command("verify")
def verify(context: typer.Context, kit: KitOption = None, site: SiteOption = None) -> None:
    """Check every receipt against its neighbours and the ledger; exit code 5 if one is amiss."""
    from client.authority.ledger import read_ledger
    from client.authority.receipts import verify as verify_receipts

    if kit is None and site is None:
        kit, site = context.obj  # they may stand before the word `verify`, too
    own = _site(kit, site)
    path = own.state / "ledger.sqlite"
    verdict = verify_receipts(own.state / "receipts", lambda: read_ledger(path).head)
    for fault in verdict.faults:
        tell(f"{fault.place}: {fault.what}")
    if verdict.faults:
        raise FolderError(
            f"receipts of {own.name} were changed or lost; faults: {len(verdict.faults)}. Compare "
            "them with a backup, and tell whoever answers for data protection here"
        )
    number, digest = verdict.head
    tell(f"{verdict.count} receipts are whole; the hash of number {number} is {digest}")


@app.command()
def serve(
    kit: KitFolder,
    socket: Annotated[
        Path | None, typer.Option(help="Unix socket for the courier; by default in the kit.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT for a courier elsewhere, with mutual TLS.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="HOST:PORT for Prometheus; without: no metrics.")
    ] = None,
) -> None:
    """Run the agent: the process that has the data and answers orders."""
    command.fix_allocator(sys.orig_argv)
    from client.kit import open_kit
    from client.service.daemon import serve as serve_agent

    serve_agent(open_kit(kit), socket=socket, listen=listen, metrics=metrics)


@app.command()
def node(
    kit: KitFolder,
    agent: Annotated[
        str, typer.Option(help="HOST:PORT or socket of the agent; without: the kit's socket.")
    ] = "",
    hub: Annotated[str, typer.Option(help="HOST:PORT of the hub; without: the kit's.")] = "",
) -> None:
    """Run Flower's SuperNode and the courier: they carry orders to the agent and have no data."""
    from client.courier.node import run_node
    from client.kit import open_kit

    run_node(open_kit(kit), agent=agent, hub=hub)


@app.command()
def doctor(
    kit: KitFolder,
    study: Annotated[
        Path | None, typer.Option(help="Study file; estimates the minutes of a round.")
    ] = None,
    agent: Annotated[
        str, typer.Option(help="HOST:PORT or socket of the agent; without: the kit's socket.")
    ] = "",
    share: Annotated[
        bool, typer.Option("--share", help="Without names of folders and hosts, to be mailed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Examine this machine, its connection and its kit; each finding says what to do."""
    from client.doctor import checkup

    found = checkup.consult(kit, study, agent=agent)
    if as_json:
        print(checkup.as_json(found, share=share))
    else:
        tell(checkup.format_page(found, share=share))
    code = checkup.exit_code(found.findings)
    if code:
        raise typer.Exit(code)


@app.command("keys")
def show_keys() -> None:
    """List every key of a site file with its default and meaning."""
    from common.documentation import site_keys

    tell(site_keys(Site))


def main() -> None:
    """Entry point of `callosum-site`."""
    command.run(app, "callosum-site")


def _site(kit: Path | None, site: Path | None) -> Site:
    """The site of a kit or of a site file, whichever was given; its state is this user's alone."""
    from client.site import load_site
    from common.runtime.private_folder import check_own

    if (kit is None) == (site is None):
        given = "both are given" if kit is not None else "neither is given"
        raise click.UsageError(f"one of --kit KIT and --site SITE.TOML is needed; {given}")
    if kit is not None:
        from client.kit import open_kit

        own = load_site(open_kit(kit).site_file)
    else:
        assert site is not None
        own = load_site(site)
    check_own(own.state)
    return own


def _by_run(exposures: Sequence[Any]) -> list[tuple[str, ...]]:
    """One row for each study, run, model and kind, oldest first."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for each in exposures:
        key = (each.study_name, each.run[:12], each.model, each.kind)
        groups.setdefault(key, []).append(each)
    return [
        (*key, str(len(group)), str(sum(e.answered for e in group)), group[0].time, group[-1].time)
        for key, group in groups.items()
    ]


def _receipt_row(receipt: dict[str, Any]) -> tuple[str, ...]:
    study = receipt.get("study", {})
    return (
        str(receipt["number"]),
        str(receipt["time"]),
        study.get("name") or study.get("digest", "")[:12],
        receipt.get("kind", ""),
        receipt.get("model", ""),
        str(receipt.get("round", "")),
        receipt.get("refusal", ""),
        str(len(receipt.get("arrays", ()))),
        str(len(receipt.get("numbers", ()))),
        f"{receipt.get('bytes', 0) / 1e3:.1f}",
    )


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # names from a file are no markup
    # a log or a pipe has no width; 160 characters keep a row on one line
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=1))
