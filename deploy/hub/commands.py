"""The commands of a real federation: kits, the hub, and the runs that it drives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from common.errors import INTERRUPTED, FolderError, QuorumError, SettingError
from common.runtime.progress import console, say, tell

KitsFolder = Annotated[Path, typer.Option("--out", help="Folder of all kits.")]
HubFolder = Annotated[Path, typer.Option("--hub", help="The hub's kit, KITS/hub.")]
RunName = Annotated[str, typer.Argument(help="Name of the run.", metavar="RUN")]


def provision(
    consortium: Annotated[
        Path | None, typer.Argument(help="The consortium's file; see --init.")
    ] = None,
    out: KitsFolder = Path("KITS"),
    init: Annotated[str, typer.Option(help="Write a commented NAME.toml to fill in.")] = "",
    rotate: Annotated[str, typer.Option(help="New keys for this site.", metavar="SITE")] = "",
    revoke: Annotated[str, typer.Option(help="Shut this site out.", metavar="SITE")] = "",
    *,
    renew_server: Annotated[
        bool, typer.Option("--renew-server", help="New server certificate; sites need nothing.")
    ] = False,
    rotate_coordinator: Annotated[
        bool, typer.Option("--rotate-coordinator", help="Make the next signing key.")
    ] = False,
    finish_coordinator: Annotated[
        bool, typer.Option("--finish-coordinator", help="Sign with the next key from now on.")
    ] = False,
) -> None:
    """Make certificates, keys and a folder for every site; again to add sites or change keys."""
    from common.runtime.durable import write_atomically
    from deploy.kits import provision as kits
    from deploy.kits.consortium import consortium_template

    chosen = [consortium, init, rotate, revoke, renew_server, rotate_coordinator]
    if sum(map(bool, [*chosen, finish_coordinator])) != 1:
        raise SettingError("give a consortium file, or exactly one of the options of --help")
    if init:
        path = Path(f"{init}.toml")
        if path.exists():
            raise FolderError(f"{path} exists; choose another name or remove it")
        write_atomically(path, consortium_template(init, path.name).encode())
        tell(f"{path} is written; edit it, then: callosum provision {path} --out {out}")
        return
    if consortium is not None:
        outcome = kits.provision(consortium, out)
    elif rotate:
        outcome = kits.rotate_site(out, rotate)
    elif revoke:
        outcome = kits.revoke_site(out, revoke)
    elif renew_server:
        outcome = kits.renew_server(out)
    else:
        outcome = kits.rotate_coordinator(out, finish=finish_coordinator)
    for line in outcome.todo:
        tell(line)


def hub(
    kit: Annotated[Path, typer.Option("--kit", help="The hub's kit, KITS/hub.")],
    metrics: Annotated[
        str, typer.Option(help="Serve Prometheus metrics at this host:port; empty: nowhere.")
    ] = "",
    *,
    nginx: Annotated[
        bool, typer.Option("--nginx", help="Print the nginx file of this hub and end.")
    ] = False,
) -> None:
    """Serve as the hub: Flower kept alive, every wanted run driven to its end."""
    from deploy.hub.service import serve_hub
    from deploy.kits.hub_kit import open_hub
    from deploy.nginx.proxy import render_nginx

    if nginx:
        tell(render_nginx(open_hub(kit)))
        return
    serve_hub(open_hub(kit), metrics=metrics)


def run(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    hub: HubFolder,
    name: Annotated[str, typer.Option(help="Name of the run; the study's if not given.")] = "",
    *,
    detach: Annotated[bool, typer.Option("--detach", help="Do not look on.")] = False,
) -> None:
    """Start a study at the sites, or go on with it, and look on; Ctrl-C leaves it running."""
    from common.network.buildable import check_buildable
    from common.study import load_study
    from deploy.hub.service import check_sites, hub_lives
    from deploy.kits.hub_kit import open_hub
    from server.report.live_view import follow
    from server.run import create_run
    from server.run_state import want

    kit, agreed = open_hub(hub), load_study(study)
    check_buildable(agreed, study)
    check_sites(kit, agreed, study)
    found = create_run(kit.runs / (name or agreed.name), agreed, study)
    since = time.time()
    want(found.folder, "running")
    if not hub_lives(kit):
        say(f"no hub is running yet; the run begins with: callosum hub --kit {hub}")
    if detach:
        tell(f"{found.folder}")
        return
    try:
        state = follow(found, hub_lives=lambda: hub_lives(kit), since=since)
    except KeyboardInterrupt:
        say(f"the hub goes on with it; callosum stop {found.folder.name} --hub {hub} would stop it")
        raise
    if state["state"] == "failed":
        raise QuorumError(f"{found.folder.name}: {state['error']}")
    if state["state"] == "stopped":
        say(f"{found.folder.name} was stopped; the same command goes on with it")
        raise typer.Exit(INTERRUPTED)
    tell(f"results: {found.folder / 'results.csv'}")


def runs(hub: HubFolder) -> None:
    """List the hub's runs and how they stand."""
    from deploy.kits.hub_kit import open_hub
    from server.report.terminal import table_in_text
    from server.run import read_run
    from server.run_state import state_of

    rows = []
    for folder in sorted(path.parent for path in open_hub(hub).runs.glob("*/wanted.json")):
        found, state = read_run(folder), state_of(folder)
        done = f"{len(found.federated.records())} of {found.study.pretraining.rounds}"
        about = (str(state.get(key, "")) for key in ("attempts", "error"))
        how = str(state.get("state", "waiting"))
        rows.append((folder.name, found.study.name, how, done, *about))
    columns = ("run", "study", "state", "rounds", "attempts", "error")
    console.print(table_in_text("", columns, rows))


def stop(name: RunName, hub: HubFolder) -> None:
    """Stop a run; nothing done so far is lost, and `callosum run` goes on with it."""
    from deploy.kits.hub_kit import open_hub
    from server.run_state import want, wanted_of

    folder = open_hub(hub).runs / name
    if wanted_of(folder) is None:
        known = ", ".join(path.parent.name for path in folder.parent.glob("*/wanted.json"))
        raise SettingError(f"the hub has no run {name}; it has: {known or 'none'}")
    want(folder, "stopped")
    tell(f"{name} is stopped; callosum run goes on with it")


def books(
    hub: HubFolder,
    accept: Annotated[
        str, typer.Option(help="Let this site go on, with the count seen.", metavar="SITE")
    ] = "",
    exposures: Annotated[
        int | None, typer.Option(help="Fewest exposures then, where the count seen cannot be.")
    ] = None,
) -> None:
    """Show what was last seen of each site's books, and whom they stopped; accept one again."""
    from datetime import UTC, datetime

    from deploy.kits.hub_kit import open_hub
    from server.federation.books import SiteBooks
    from server.report.terminal import table_in_text

    kept = SiteBooks(open_hub(hub).books)
    if accept:
        count = kept.accept(accept, exposures).exposures
        tell(f"{accept} is asked again; its next report must tell {count} exposures or more")
        return
    pages = {site: kept.page(site) for site in kept.sites()}
    rows = []
    for site, page in pages.items():
        last = page.seen[-1] if page.seen else None
        about = (last.state[:8], str(last.exposures), str(last.receipt)) if last else ("",) * 3
        rows.append((site, *about, "STOPPED" if page.stopped else ""))
    columns = ("site", "state folder", "exposures", "receipt", "")
    console.print(table_in_text("", columns, rows))
    for site, page in pages.items():
        if page.stopped:  # in a line of its own: whoever decides reads all of it
            at = datetime.fromtimestamp(page.since, UTC).isoformat(timespec="minutes")
            say(f"{site} is stopped{f' since {at}' if page.since else ''}: {page.stopped}")
