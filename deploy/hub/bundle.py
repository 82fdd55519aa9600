"""The app bundle for Flower: the courier, the ServerApp and what they import, and nothing else.

It is staged from the installed files, so that a wheel in an empty folder is enough. The bundle goes
to every hospital; the list of its files is a privacy control, and a test prints it.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import tomli_w
from flwr.cli.build import build_fab_from_disk

from common.protocol.code import files_behind
from common.runtime.durable import write_atomically

_ROOTS = ("server.app", "client.app")


def bundle_files() -> dict[str, Path]:
    """Every Python file of the bundle, by its path inside."""
    return files_behind(_ROOTS)


def stage(folder: Path) -> bytes:
    """Write the bundle's files to `folder`, which holds nothing else then, and pack them."""
    shutil.rmtree(folder, ignore_errors=True)
    for inside, file in bundle_files().items():
        write_atomically(folder / inside, file.read_bytes())
    write_atomically(folder / "pyproject.toml", tomli_w.dumps(_project()).encode())
    return build_fab_from_disk(folder)


def _project() -> dict[str, object]:
    """What Flower reads about an app; run config holds flat values, and only keys named here."""
    return {
        "project": {
            "name": "callosum",
            "version": importlib.metadata.version("callosum"),
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "callosum",
                    "fab-include": ["**/*.py"],
                    "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
                    "config": {"run": "", "nodes": "", "key": "", "books": "", "peers": ""},
                }
            }
        },
    }
