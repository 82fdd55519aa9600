"""Where `callosum` and `callosum-site` begin: our packages come from this installation alone.

They have plain names, and PYTHONPATH, which FSL, FreeSurfer and lab profiles set, is searched
before what is installed: a `common.py` there would be taken for ours.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

_OURS: Final = ("client", "common", "deploy", "server")
_HOME: Final = str(Path(__file__).resolve().parent)


def callosum() -> None:
    """The coordinator's command."""
    _put_ours_first()
    from deploy.cli import main

    main()


def callosum_site() -> None:
    """The hospital's command."""
    _put_ours_first()
    from client.cli import main

    main()


def _put_ours_first() -> None:
    """Search this installation before whatever else holds a package called as ours."""
    os.environ["PYTHONSAFEPATH"] = "1"  # children look for no package where they are started
    holding = (
        number
        for number, place in enumerate(sys.path)
        if any(PathFinder.find_spec(name, [place]) for name in _OURS)
    )
    first = next(holding, None)
    if first is not None and Path(sys.path[first]).resolve() != Path(_HOME):
        sys.path.insert(first, _HOME)
        given = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_HOME, given]))
