"""What both commands share: errors become one clear line and a documented exit code."""

from __future__ import annotations

import errno
import logging
import sys

import click
import typer

from common.errors import INTERRUPTED, CallosumError, StorageError
from common.progress import console


def run(app: typer.Typer, name: str) -> None:
    """Run a command line and leave with its exit code; a traceback means a defect of ours."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("callosum.site").setLevel(logging.ERROR)  # sites write their own logs
    sys.exit(_exit_code(app, name))


def _exit_code(app: typer.Typer, name: str) -> int:
    try:
        code = typer.main.get_command(app).main(prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = INTERRUPTED
    except CallosumError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        console.print(f"error: the disk is full ({error.filename}); free space and run again")
        return StorageError.exit_code
    if code == INTERRUPTED:  # Typer turns Ctrl-C into this code without a word
        console.print("stopped; the same command goes on from here")
    return code if isinstance(code, int) else 0
