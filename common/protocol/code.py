"""Which of our source files a module stands on, and the digest of those that both ends must share.

The app bundle is staged from such a list, and every order names the digest of the coordinator's
list: a site whose own differs would read orders differently, and refuses instead.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from common import catalogue

_ROOT: Final = Path(__file__).parents[2]
_ROOMS: Final = ("common", "client", "server")
# what decides how an order is read, a network is built and numbers are merged
_AGREED: Final = (
    "common.protocol.orders",
    "common.protocol.signing",
    "common.protocol.wire",
    "common.network",
    "common.metrics",
    "common.study",
)


def files_behind(modules: Iterable[str]) -> dict[str, Path]:
    """Files of `modules` and of all that they import of ours, by path inside a bundle.

    The catalogue's backbones, objectives and data kinds are imported by name; they follow it.

    >>> "common/errors.py" in files_behind(["common.runtime.durable"])
    True
    """
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        file = _file_of(module)
        if file is None or _inside(file) in found:
            continue
        found[_inside(file)] = file
        waiting += _imported(file)
        if module == "common.catalogue":
            waiting += catalogue.own_modules()
        for folder in file.relative_to(_ROOT).parents:
            initial = _ROOT / folder / "__init__.py"
            if folder != Path() and initial.exists():
                found[_inside(initial)] = initial
    return dict(sorted(found.items()))


@lru_cache(maxsize=1)
def agreed_digest() -> str:
    """SHA-256 of the source that both ends of a federation must share."""
    hasher = hashlib.sha256()
    for inside, file in files_behind(_AGREED).items():
        content = file.read_bytes()
        hasher.update(f"{inside} {len(content)}\n".encode() + content)
    return hasher.hexdigest()


def _file_of(module: str) -> Path | None:
    if module.partition(".")[0] not in _ROOMS:
        return None
    path = _ROOT / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _inside(file: Path) -> str:
    return file.relative_to(_ROOT).as_posix()
