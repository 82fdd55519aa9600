"""Flower's ServerApp: opens the run, drives its phases, and says why one broke off.

Run config: `run` is the run folder, `nodes` a JSON object from site name to Flower node id, `key`
the file of the coordinator's signing key and `books` the folder of what was seen of the sites'
books, both empty where sites and coordinator are one process; `peers` the file of the sites'
identities for secure sums, empty where the coordinator has none.
"""

from __future__ import annotations

from contextlib import suppress
from logging import FileHandler, Formatter, LogRecord, getLogger
from pathlib import Path

import httpx
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import CallosumError, RunBusyError, StorageError
from common.protocol.bounded_json import parsed
from common.protocol.signing import read_private_key
from common.secure_sums.identities import read_identities
from server.federation.books import SiteBooks
from server.federation.exchange import Exchange
from server.federation.phases import Phases
from server.federation.progress import ProgressFile
from server.run import open_run, read_run
from server.run_state import note_break, note_failure

app = ServerApp()
_log = getLogger("callosum.server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of a run folder over Flower's grid."""
    folder = Path(str(context.run_config["run"]))
    _log_to(folder / "run.log")
    try:
        _drive(grid, context, folder)
    except RunBusyError:  # a ServerApp that lost its hub still ends; trying again is right
        raise
    except CallosumError as error:  # whoever drives the run must not try for ever
        with suppress(StorageError):  # a full disk takes no note of itself
            note_failure(folder, str(error))
        raise
    except httpx.TransportError:  # the hub went away; it hands the run over when it is back
        _log.exception("the run lost its hub")
        raise
    except Exception as error:
        _log.exception("the run broke off")
        note_break(folder, error)
        raise


def _drive(grid: Grid, context: Context, folder: Path) -> None:
    nodes: dict[str, int] = parsed(str(context.run_config["nodes"]))
    key = str(context.run_config["key"])
    books, peers = str(context.run_config["books"]), str(context.run_config["peers"])
    study = read_run(folder).study
    exchange = Exchange(
        grid,
        nodes,
        study,
        key=read_private_key(Path(key)) if key else None,
        books=SiteBooks(Path(books)) if books else None,
        progress=ProgressFile(folder, study.pretraining.rounds),
    )
    exchange.identities = read_identities(Path(peers)) if peers else {}
    with open_run(folder, study) as run:
        Phases(run, exchange).all()


class _RunLog(FileHandler):
    def handleError(self, record: LogRecord) -> None:  # noqa: N802  the name is logging's
        """A full disk takes no log, and the error that it makes is told by itself."""


def _log_to(path: Path) -> None:
    """Keep what is logged beside the run: Flower shows it to nobody who does not ask in time."""
    for handler in list(_log.handlers):
        _log.removeHandler(handler)
        handler.close()
    handler = _RunLog(path)
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
