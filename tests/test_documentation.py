"""What the guides say is true: keys, exit codes, commands, make targets, files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer

import client.cli
import deploy.cli
from client.site import Site
from common import errors
from common.documentation import site_keys, study_keys

ROOT = Path(__file__).parents[1]
GUIDES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md")])


def test_every_study_key_is_in_the_coordinators_guide() -> None:
    """A key that the guide lacks is a key that nobody finds."""
    assert study_keys() in (ROOT / "server" / "README.md").read_text()


def test_every_site_key_is_in_the_hospitals_guide() -> None:
    """The same for the file that hospitals write."""
    assert site_keys(Site) in (ROOT / "client" / "README.md").read_text()


def test_every_exit_code_is_documented() -> None:
    """Scripts around the commands act on these numbers."""
    tree = [errors.CallosumError]
    for error in tree:
        tree += error.__subclasses__()
    codes = {error.exit_code for error in tree} | {0, 2, errors.INTERRUPTED}
    text = (ROOT / "server" / "README.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)}
    assert documented == codes


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_guides_exist(guide: Path) -> None:
    """A command that a newcomer copies must be one."""
    known = {
        "callosum": typer.main.get_command(deploy.cli.app),
        "callosum-site": typer.main.get_command(client.cli.app),
    }
    for line in re.findall(r"```sh\n(.*?)```", guide.read_text(), flags=re.DOTALL):
        for program, first in re.findall(r"^(callosum(?:-site)?) ([a-z]+)", line, re.MULTILINE):
            assert first in known[program].commands, f"{program} {first}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_make_targets_in_guides_exist(guide: Path) -> None:
    """A guide that points nowhere is worse than none."""
    text = guide.read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (guide.parent / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z]+)", text, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile, target


def test_pinned_versions_are_the_promised_ones() -> None:
    """A looser torch pulls gigabytes; another flwr is another protocol."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {"torch==2.13.0", "flwr>=1.41,<1.42"} <= set(wanted)
    assert any(line.startswith("nilearn") and "<0.14" in line for line in wanted)
    assert "\ntorch==2.13.0\n" in (ROOT / "constraints.txt").read_text()


def test_package_lists_name_every_folder() -> None:
    """A folder that setuptools does not know is missing from every installed copy."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for room in ("common", "client", "server", "deploy")
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert set(listed) == found
