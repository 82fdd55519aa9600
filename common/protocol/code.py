"""Which source files a module stands on, and the digest of those that both ends of a study share.

The app bundle is staged from such a list. Every order names a digest: of the core that reads
orders, builds networks and merges numbers, and of what its study names besides, packages from
outside included. A site whose own digest differs would read orders differently, and refuses. A
file that the study does not use may differ.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Final

from common import catalogue
from common.study import Study

_ROOT: Final = Path(__file__).parents[2]
_ROOMS: Final = ("common", "client", "server")
# what decides how an order is read, a network is built and numbers are merged
_CORE: Final = (
    "common.protocol.orders",
    "common.protocol.signing",
    "common.protocol.tokens",
    "common.protocol.wire",
    "common.network.building",
    "common.label_sums",
    "common.metrics",
    "common.secure_sums.numbers",
    "common.secure_sums.tables",
    "common.secure_sums.updates",
    "common.study",
)
_PARSING: Final = Lock()  # Python's parser loses count where two threads are in it (gh-106905)
# lists what is installed, and grows with it: what a study names is hashed itself
_LIST: Final = "common.catalogue"


def files_behind(modules: Iterable[str], *, listed: bool = True) -> dict[str, Path]:
    """Files of `modules` and of all that they import of ours, by path inside a bundle.

    The catalogue's own plug-ins are imported by name; if `listed`, they follow the catalogue.

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
        waiting += _imported(file, module)
        if module == _LIST and listed:
            waiting += catalogue.own_modules()
        for folder in file.relative_to(_ROOT).parents:
            initial = _ROOT / folder / "__init__.py"
            if folder != Path() and initial.exists():
                found[_inside(initial)] = initial
    return dict(sorted(found.items()))


def agreed_files(study: Study) -> dict[str, Path]:
    """Files that both ends must share for this study, by a name that is the same everywhere."""
    named = [catalogue.module_of(shelf, name) for shelf, name in study.plugins()]
    found = files_behind([*_CORE, *named], listed=False)
    for module in named:
        found |= _outside(module)
    found.pop(f"{_LIST.replace('.', '/')}.py")
    return dict(sorted(found.items()))


@lru_cache(maxsize=64)
def agreed_digest(study: Study) -> str:
    """SHA-256 of the source that both ends of a federation must share for this study."""
    hasher = hashlib.sha256()
    for inside, file in agreed_files(study).items():
        content = file.read_bytes()
        hasher.update(f"{inside} {len(content)}\n".encode() + content)
    return hasher.hexdigest()


def _outside(module: str) -> dict[str, Path]:
    """Files of a package from outside: the module's, and those of its own package behind it."""
    top = module.partition(".")[0]
    if top in _ROOMS:
        return {}
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _installed(name)
        if file is None or f"{name}.py" in found:
            continue
        found[f"{name}.py"] = file
        waiting += [other for other in _imported(file, name) if other.partition(".")[0] == top]
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return found


def _installed(module: str) -> Path | None:
    """The source file of an installed module; nothing is imported to find it."""
    top, *below = module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    if path.name == "__init__.py":
        path = path.parent.joinpath(*below) if below else path.parent
        return next(
            (p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None
        )
    return path if not below else None


def _file_of(module: str) -> Path | None:
    if module.partition(".")[0] not in _ROOMS:
        return None
    path = _ROOT / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def _imported(file: Path, module: str) -> Iterator[str]:
    with _PARSING:
        tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _from(node, file, module)
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)


def _from(node: ast.ImportFrom, file: Path, module: str) -> str:
    """The module that a `from` import names; relative ones start from the package."""
    if not node.level:
        return node.module or ""
    parts = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)


def _inside(file: Path) -> str:
    return file.relative_to(_ROOT).as_posix()
