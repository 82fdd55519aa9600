"""What the guides say is true: keys, codes, commands and their options, metrics, files, links."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import typer
from typer.testing import CliRunner

import client.cli
import deploy.cli
from client.site import Policy, Site
from common import errors
from common.documentation import site_keys, study_keys
from server.run_state import State
from tests.deploy.hub.test_prometheus import exported

ROOT = Path(__file__).parents[1]
GUIDES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/README.md")])
APPS = {"callosum": deploy.cli.app, "callosum-site": client.cli.app}
OPERATORS = set("();<>|&")

every_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))


def read(*place: str) -> str:
    return ROOT.joinpath(*place).read_text()


def test_every_study_key_is_in_the_coordinators_guide() -> None:
    """A key that the guide lacks is a key that nobody finds."""
    assert study_keys() in read("server", "README.md")


def test_every_site_key_is_in_the_hospitals_guide() -> None:
    """The same for the file that hospitals write."""
    assert site_keys(Site) in read("client", "README.md")


def test_every_exit_code_is_documented() -> None:
    """Scripts around the commands act on these numbers."""
    tree = [errors.CallosumError]
    for error in tree:
        tree += error.__subclasses__()
    codes = {error.exit_code for error in tree} | {0, 2, errors.INTERRUPTED}
    text = read("server", "README.md")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)}
    assert documented == codes


def test_every_policy_key_is_explained_to_hospitals() -> None:
    """What a hospital may limit is said where it decides, not only in the list of all keys."""
    text = read("client", "README.md").partition("## Every key")[0]
    for key in Policy.model_fields:
        assert f"| `policy.{key}` |" in text, key


def test_every_refusal_code_is_in_the_coordinators_table_once() -> None:
    """A coordinator who sees a code must find whose it is and what to do."""
    found = list(tabled("server"))
    assert sorted(found) == sorted(errors.SENTENCES)


def test_every_code_that_a_site_can_give_is_in_the_hospitals_table_once() -> None:
    """Codes come from the source: one that is new at a site is missed here at once."""
    rooms = [*(ROOT / "client").rglob("*.py"), *(ROOT / "common" / f for f in SHARED)]
    written = {code for file in rooms for code in re.findall(r'"([A-Z_]+)"', file.read_text())}
    given = written & errors.SENTENCES.keys()
    assert len(given) > 15  # else this test reads nothing
    assert sorted(tabled("client")) == sorted(given)


SHARED = (
    "protocol/signing.py",
    "protocol/wire.py",
    "secure_sums/ring.py",
    "secure_sums/rosters.py",
)  # whose refusals a site raises, too


def tabled(room: str) -> Iterator[str]:
    """Codes in the first cell of a row, in the guide of `room`."""
    for cell in re.findall(r"^\| (`[A-Z`_, ]+`)", read(room, "README.md"), flags=re.MULTILINE):
        yield from re.findall("[A-Z_]+", cell)


@pytest.mark.parametrize("room", ["client", "server"])
def test_no_guide_names_a_code_that_is_none(room: str) -> None:
    """A code that was renamed must not live on in prose."""
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", read(room, "README.md")))
    assert named <= errors.SENTENCES.keys()


def test_every_state_of_a_run_is_documented() -> None:
    """`callosum runs` shows them, and alerts name them."""
    table = read("server", "README.md").partition("| state | meaning |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([a-z]+) \|", table, flags=re.MULTILINE) == list(get_args(State))


def leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below `command` that does something, by all of its words."""
    children = getattr(command, "commands", {})
    if not children or getattr(command, "invoke_without_command", False):
        yield name, command
    for child, below in children.items():
        yield from leaves(below, f"{name} {child}")


LEAVES = {
    words: command
    for name, app in APPS.items()
    for words, command in leaves(typer.main.get_command(app), name)
}


FOREIGN = {"--profile"}  # docker compose's
OPTIONS = FOREIGN | {name for c in LEAVES.values() for option in c.params for name in option.opts}


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_is_in_a_guide_and_explains_itself(words: str) -> None:
    """What only `--help` knows is not known; what `--help` breaks on is not either."""
    everything = " ".join(" ".join(guide.read_text().split()) for guide in GUIDES)
    assert re.search(rf"{words}(?![\w-])", everything)
    program, *rest = words.split()
    shown = CliRunner().invoke(APPS[program], [*rest, "--help"])
    assert shown.exit_code == 0
    for option in LEAVES[words].params:
        assert option.human_readable_name
        assert getattr(option, "help", "written by click"), f"{words}: {option.name} has no help"


def commands(line: str) -> Iterator[tuple[str, list[str]]]:
    """Program and arguments of each command of ours in one line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    for is_operator, words in itertools.groupby(lexer, lambda word: set(word) <= OPERATORS):
        if is_operator:
            continue
        named = list(words)
        while named[:2] == ["sudo", "-u"] or (named and "=" in named[0]):
            named = named[3:] if named[0] == "sudo" else named[1:]
        program = Path(named[0]).name if named else ""
        if program in APPS:
            yield program, named[1:]


def parse(command: click.Command, words: list[str], parent: click.Context | None = None) -> None:
    """Let click judge the words, down to the last command, without running it."""
    context = command.make_context(command.name, list(words), parent=parent)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if rest:
            _, child, below = command.resolve_command(context, rest)
            assert child is not None
            parse(child, below, context)


@every_guide
def test_command_lines_in_guides_are_right(guide: Path) -> None:
    """What a newcomer copies must be a command, with options that it has and all that it needs."""
    for block in re.findall(r"```sh\n(.*?)```", guide.read_text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for program, words in commands(line):
                try:
                    parse(typer.main.get_command(APPS[program]), words)
                except click.ClickException as error:
                    pytest.fail(f"{line.strip()}: {error.format_message()}")


@every_guide
def test_commands_in_sentences_exist_with_their_options(guide: Path) -> None:
    """In a sentence a command may lack what it needs, but not be another."""
    for span in spans(guide):
        words = span.split()
        words = words[3:] if words[:2] == ["sudo", "-u"] else words
        if words and words[0].startswith("--"):
            assert words[0] in OPTIONS, span
        command: Any = APPS.get(Path(words[0]).name) if words else None
        command = command and typer.main.get_command(command)
        known = {"--help"}
        for word in words[1:] if command else ():
            if isinstance(command, click.Group) and re.fullmatch("[a-z]+(-[a-z]+)*", word):
                assert word in command.commands, span
                command = command.commands[word]
            known |= {name for option in command.params for name in option.opts}
            assert not word.startswith("--") or word in known, span


def spans(guide: Path) -> list[str]:
    """Everything between single backticks, outside of blocks."""
    text = re.sub(r"```.*?```", "", guide.read_text(), flags=re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


@every_guide
def test_metrics_in_guides_exist(guide: Path, tmp_path: Path) -> None:
    """A query over a name that nobody exports is silent for ever."""
    there = metrics(tmp_path)
    assert metrics_named(guide) <= there


def test_every_metric_is_documented(tmp_path: Path) -> None:
    """What is measured and not explained is not used."""
    assert metrics_named(ROOT / "deploy" / "README.md") == metrics(tmp_path)


def metrics(folder: Path) -> set[str]:
    """Ours, a summary under its own name."""
    names = {name.removesuffix("_sum").removesuffix("_count") for name in exported(folder)}
    return {name for name in names if name.startswith("callosum_")}


def metrics_named(guide: Path) -> set[str]:
    """Names in code spans, braces expanded: `callosum_hub_disk_{free,size}_bytes`."""
    found = set[str]()
    for span in spans(guide):
        if re.fullmatch(r"callosum_(site|hub)_[a-z_{},]+", span):
            parts = [part.split(",") for part in re.split("[{}]", span)]
            found |= {"".join(chosen) for chosen in itertools.product(*parts)}
    return found


@every_guide
def test_links_anchors_and_make_targets_in_guides_exist(guide: Path) -> None:
    """A guide that points nowhere is worse than none."""
    text = guide.read_text()
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
        there = guide.parent / link if link else guide
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), f"{link}#{anchor}"
    makefile = read("Makefile")
    for target in re.findall(r"^make ([a-z]+)", text, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile, target


def anchors(guide: Path) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", guide.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings}


@every_guide
def test_our_own_files_named_in_guides_exist(guide: Path) -> None:
    """The threat model names the tests that hold it: they must be there."""
    own = re.compile(r"(?:tests|client|server|common|deploy)/[\w./-]+\.[a-z]+")
    for name in re.findall(own, guide.read_text()):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_pinned_versions_are_the_promised_ones() -> None:
    """A looser torch pulls gigabytes; another flwr is another protocol."""
    wanted = tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]
    assert {"torch==2.13.0", "flwr>=1.41,<1.42"} <= set(wanted)
    assert any(line.startswith("nilearn") and "<0.14" in line for line in wanted)
    assert "\ntorch==2.13.0\n" in read("constraints.txt")


def test_package_lists_name_every_folder() -> None:
    """A folder that setuptools does not know is missing from every installed copy."""
    listed = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for room in ("common", "client", "server", "deploy")
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert set(listed) == found
