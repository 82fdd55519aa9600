"""Our commands run our packages, whatever PYTHONPATH and the present folder hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# what pip writes as bin/callosum-site
SCRIPT = """
import sys
from callosum_entry import {name}
if __name__ == "__main__":
    sys.argv[0] = "it"
    sys.exit({name}())
"""


def asked(folder: Path, name: str, *arguments: object, path: str) -> str:
    """What a command prints that is started in `folder`."""
    script = folder / "bin" / "it"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT.format(name=name))
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=folder, env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder with modules and packages called as ours, as a lab's profile puts on the path."""
    folder = tmp_path / "strange"
    for name in ("client", "deploy", "server"):
        (folder / name).mkdir(parents=True)
    (folder / "common.py").write_text("raise SystemExit('this is not Callosum')\n")
    (folder / "deploy" / "__init__.py").write_text("raise SystemExit('nor is this')\n")
    return folder


@pytest.mark.parametrize("name", ["callosum", "callosum_site"])
def test_a_stranger_on_the_path_is_not_taken_for_ours(strange: Path, name: str) -> None:
    """FSL, FreeSurfer and lab profiles set PYTHONPATH; every command ended with ImportError."""
    assert "Usage: " in asked(strange, name, "--help", path=f"{strange}:{ROOT}")


def test_children_of_a_command_import_ours_too(
    strange: Path, federation: Callable[..., Any]
) -> None:
    """The preparing processes start from the environment, and from the folder one stands in."""
    made = federation()
    site = made.sites / "alpha" / "site.toml"
    found = asked(
        strange, "callosum_site", "prepare", "--study", made.study_file, "--site", site,
        "--workers", 2, path=f"{strange}:{ROOT}",
    )  # fmt: skip
    assert "; 0 left out" in found


def test_a_whole_checkout_on_the_path_is_used_as_it_is(tmp_path: Path) -> None:
    """Whoever puts a checkout before what is installed means it."""
    program = (
        "import callosum_entry, os, sys; before = list(sys.path)\n"
        "callosum_entry._put_ours_first(); import common\n"
        "print(common.__file__, sys.path == before, os.environ['PYTHONPATH'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [str(ROOT / "common" / "__init__.py"), "True", str(ROOT)]
