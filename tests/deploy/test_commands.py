"""What people type, and the exit code and sentence they get for each of the usual mistakes."""

from __future__ import annotations

import csv
import hashlib
import importlib
import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import tomli_w
import typer

from common import errors
from common.errors import SENTENCES, CallosumError
from common.protocol.orders import Books, Order, Report
from common.protocol.wire import open_arrays
from common.study import load_study
from deploy.kits.hub_kit import open_hub
from server.federation.books import SiteBooks
from server.run import open_run

ROOT = Path(__file__).parents[2]
FAST = {
    "evaluation.head": False,
    "objective.targets": ["age"],
    "pretraining.rounds": 1,
    "sites.train": ["alpha", "beta"],
}
JUDGED = {**FAST, "sites.heldout": ["omega"]}


@dataclass(frozen=True)
class Done:
    """How a command ended, and all that it wrote."""

    code: int
    text: str


Run = Callable[..., Done]


@pytest.fixture
def callosum(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`callosum ...` in this process, through the entry point that the installed command calls."""
    return _runner("deploy.cli", monkeypatch, capsys)


@pytest.fixture
def callosum_site(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`callosum-site ...` likewise."""
    return _runner("client.cli", monkeypatch, capsys)


def _runner(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    main = importlib.import_module(module).main
    log = logging.getLogger("callosum.site")

    def run(*words: object) -> Done:
        level, capsys_before = log.level, capsys.readouterr()
        assert capsys_before is not None
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["callosum", *map(str, words)])
            # as if the program had started itself again already
            patch.setenv("MALLOC_MMAP_THRESHOLD_", "1")
            patch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
            main()
        log.setLevel(level)
        written = capsys.readouterr()
        return Done(int(ended.value.code or 0), written.out + written.err)

    return run


@pytest.fixture(scope="module")
def finished(module_federation: Any) -> Any:
    """A federation whose run is done, to be copied by whoever changes it."""
    federation = module_federation(JUDGED)
    federation.simulate()
    return federation


@pytest.fixture
def done(finished: Any, tmp_path: Path) -> Any:
    """A copy of a federation whose run is done."""
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    return type(finished)(folder, finished.base, dict(finished.changes))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a TOML file, dots as double underscores."""
    table = tomllib.loads(path.read_text())
    for dotted, value in changes.items():
        *places, key = dotted.split("__")
        here = table
        for place in places:
            here = here.setdefault(place, {})
        here[key] = value
    path.write_text(tomli_w.dumps(table))


def edit_table(site: Path, change: Callable[[list[dict[str, str]]], Any]) -> None:
    """Let `change` edit a site's rows in place, or return new ones."""
    path = site / "table.csv"
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows = change(rows) or rows
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# The commands themselves.


def commands(module: str) -> Iterator[tuple[str, click.Command]]:
    """Every command and group below an entry point, by the words that reach it."""

    def below(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(f"{words} {name}", inner)

    yield from below("", typer.main.get_command(importlib.import_module(module).app))


@pytest.mark.parametrize("module", ["deploy.cli", "client.cli"])
def test_every_command_argument_and_option_has_help(module: str) -> None:
    """`--help` is the manual that is always at hand."""
    found = list(commands(module))
    assert len(found) > 4
    for words, command in found:
        assert (command.help or "").strip(), words
        for parameter in command.params:
            if parameter.name != "help":
                text = getattr(parameter, "help", None)
                assert text, f"{words} {parameter.name}"
                assert text[0].isupper(), f"{words} {parameter.name}"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["callosum", "--help"], 0),
        (["callosum", "simulate", "--help"], 0),
        (["callosum"], 2),
        (["callosum", "nonsense"], 2),
        (["callosum", "simulate", "study.toml"], 2),
        (["callosum", "study", "check", "nowhere.toml"], 3),
        (["callosum-site", "--help"], 0),
        (["callosum-site", "check", "--study", "nowhere.toml"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_installed_commands_leave_with_documented_codes(
    words: list[str], code: int, tmp_path: Path
) -> None:
    """Scripts and schedulers act on the code; a traceback means a defect of ours."""
    script = Path(sys.executable).parent / words[0]
    if not script.exists():
        pytest.skip(f"{words[0]} is not installed beside this Python")
    done = subprocess.run(
        [script, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def error_classes() -> list[type[CallosumError]]:
    return [
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, CallosumError)
    ]


def test_the_tree_of_errors_lists_every_class_with_its_exit_code() -> None:
    """The tree is what people read; it must be what the program does."""
    lines = {line.split()[0]: line for line in _tree() if line.split()}
    assert set(lines) == {kind.__name__ for kind in error_classes()}
    for kind in error_classes():
        stated = re.search(r"exit (\d+)", lines[kind.__name__])
        own = "exit_code" in vars(kind)
        assert (stated is not None) == own, kind.__name__
        assert not stated or int(stated.group(1)) == kind.exit_code


def test_no_two_errors_share_an_exit_code() -> None:
    """A code that means two things means nothing."""
    codes = [kind.exit_code for kind in error_classes() if "exit_code" in vars(kind)]
    assert len(set(codes)) == len(codes)
    assert not set(codes) & {0, 2, errors.INTERRUPTED}


@pytest.mark.parametrize("module", ["deploy.cli", "client.cli"])
def test_help_lists_the_exit_codes(module: str) -> None:
    """Whoever writes a script around the command needs them."""
    text = importlib.import_module(module).app.info.help
    stated = {int(code) for code in re.findall(r"(\d+) [a-z]", text.split("Exit codes:")[1])}
    known = {kind.exit_code for kind in error_classes()} | {0, 2, errors.INTERRUPTED}
    assert stated <= known
    if module == "deploy.cli":
        assert stated == known - {1}


def _tree() -> list[str]:
    text = inspect.getdoc(errors) or ""
    block = text[text.index("CallosumError") : text.index("Two faces")]
    return [re.sub(r"[├└│─]", " ", line).strip() for line in block.splitlines()]


def sources() -> str:
    return "\n".join(
        path.read_text()
        for room in ("common", "client", "server", "deploy")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path != ROOT / "common" / "errors.py"
    )


def test_every_code_that_leaves_a_site_is_raised_somewhere() -> None:
    """A documented code that nothing raises sends people looking for it."""
    text = sources()
    assert not [code for code in SENTENCES if f'"{code}"' not in text]


def test_every_refusal_has_a_documented_code() -> None:
    """`Refusal` looks its sentence up: an unknown code would be a KeyError at a hospital."""
    raised = set(re.findall(r'Refusal\(\s*"([A-Z_]+)"', sources()))
    assert raised
    assert raised <= set(SENTENCES)
    assert all(sentence.endswith(".") for sentence in SENTENCES.values())


# Writing and checking files.


@pytest.mark.parametrize("kind", ["t1w", "features"])
def test_a_new_study_passes_its_own_check(callosum: Run, tmp_path: Path, kind: str) -> None:
    """The first two commands of the manual, with nothing edited between them."""
    first = callosum("study", "init", "new", "--kind", kind, "--out", tmp_path / "deep" / "er")
    assert first.code == 0
    path = tmp_path / "deep" / "er" / "new.toml"
    assert str(path) in first.text
    check = callosum("study", "check", path)
    assert check.code == 0
    assert "study new, digest" in check.text
    again = callosum("study", "init", "new", "--kind", kind, "--out", path.parent)
    assert (again.code, "exists" in again.text) == (5, True)


@pytest.mark.parametrize("name", ["../new", "New", "a b", "", 'x"', "a/b"])
def test_init_refuses_a_name_that_no_file_may_hold(
    callosum: Run, callosum_site: Run, tmp_path: Path, name: str
) -> None:
    """The name becomes a path; a study that cannot be loaded must not be written."""
    folder = tmp_path / "here"
    for done in (
        callosum("study", "init", "--out", folder, "--", name),
        callosum_site("init", "--out", folder, "--", name),
    ):
        assert done.code == 3
        assert f'name is "{name}"' in done.text
    assert not list(tmp_path.rglob("*.toml"))


def test_unknown_kinds_are_refused_with_those_there_are(callosum: Run, callosum_site: Run) -> None:
    """A guess is answered with a list."""
    for done in (callosum("study", "init", "a", "--kind", "fmri"),
                 callosum_site("init", "a", "--kind", "fmri")):  # fmt: skip
        assert (done.code, "features, synthetic-t1w" in done.text) == (3, True)


def test_keys_prints_every_key(callosum: Run, callosum_site: Run) -> None:
    """The manual's tables are this output."""
    study, site = callosum("study", "keys"), callosum_site("keys")
    assert study.code == site.code == 0
    for key in ("sites.quorum", "backbone.channels", "finetuning.NAME.methods", "data.columns"):
        assert f"`{key}`" in study.text
    for key in ("policy.minimum_support", "targets.NAME.codes", "data.rename"):
        assert f"`{key}`" in site.text


def test_a_backbone_too_deep_for_the_grid_is_told_before_any_work(
    callosum: Run, brains: Any
) -> None:
    """Preparing scans takes hours; arithmetic takes none."""
    federation = brains({"backbone.channels": [2, 4, 8, 8]})
    for words in (
        ["study", "check", federation.study_file],
        ["simulate", federation.study_file, "--sites", federation.sites,
         "--out", federation.folder / "run"],
    ):  # fmt: skip
        done = callosum(*words)
        assert done.code == 3
        assert "4 blocks needs volumes of at least 16 voxels" in done.text
        assert "study.toml, line " in done.text
        assert "preparing" not in done.text


def next_study(done: Any, **changes: Any) -> Path:
    """A second study on the same columns, beside a finished run."""
    path = done.folder / "next.toml"
    path.write_text(done.study_file.read_text())
    edit(path, name="next", **changes)
    return path


def test_start_prints_a_table_that_lets_a_study_begin_from_a_run(callosum: Run, done: Any) -> None:
    """Digests are not for typing: what it prints is pasted, and the run begins from those arrays."""
    checkpoint = done.folder / "run" / "checkpoints" / "final.safetensors"
    path = next_study(done, sites__heldout=[])
    printed = callosum("study", "start", path, "--from", checkpoint)
    assert printed.code == 0
    table = tomllib.loads(printed.text)["start"]
    assert table["contributors"] == ["alpha", "beta"]
    path.write_text(path.read_text() + printed.text)
    assert callosum("study", "check", path).code == 0
    ran = callosum("simulate", path, "--sites", done.sites, "--out", done.folder / "second")
    assert ran.code == 0
    before, first = (arrays_of_file(file) for file in (
        checkpoint, done.folder / "second" / "start.safetensors"
    ))  # fmt: skip
    assert {name for name in first if not name.startswith("backbone.")} == set()
    assert all(first[name].tobytes() == before[f"model/{name}"].tobytes() for name in first)


def arrays_of_file(path: Path) -> dict[str, Any]:
    with open_arrays(path) as file:
        return file.all()


@pytest.mark.parametrize(
    ("changes", "code", "wanted"),
    [
        ({"sites__train": ["omega"], "sites__heldout": ["alpha"]}, 8,
         "alpha contributed to the checkpoint that next begins from"),
        ({"backbone__hidden": [9], "sites__heldout": []}, 3, "have another shape there"),
        ({"backbone__hidden": [6, 6], "sites__heldout": []}, 3, "are not in the checkpoint"),
        ({"backbone": {"name": "linear"}, "sites__heldout": []}, 3,
         "of the checkpoint have no place in the study's network: backbone.layers.0.bias"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_told_array_by_array(
    callosum: Run, done: Any, changes: dict[str, Any], code: int, wanted: str
) -> None:
    """Half a network that was silently drawn anew would be found in a year, if at all."""
    checkpoint = done.folder / "run" / "checkpoints" / "final.safetensors"
    path = next_study(done, **changes)
    refused = callosum("study", "start", path, "--from", checkpoint)
    assert (refused.code, wanted in flat(refused.text)) == (code, True)


def test_a_file_that_is_no_checkpoint_is_no_beginning(callosum: Run, done: Any) -> None:
    """A reply in the same folder is arrays, too, and has no lineage."""
    path = next_study(done, sites__heldout=[])
    other = done.folder / "run" / "rounds" / "0001" / "replies" / "alpha.safetensors"
    refused = callosum("study", "start", path, "--from", other)
    assert (refused.code, "holds no checkpoint" in flat(refused.text)) == (5, True)


def flat(text: str) -> str:
    """Without the line breaks of a narrow terminal."""
    return " ".join(text.split())


def test_a_site_can_be_begun_checked_and_prepared(
    callosum_site: Run, federation: Any, tmp_path: Path
) -> None:
    """The hospital's first morning."""
    made = federation(FAST)
    begun = callosum_site("init", "alpha", "--kind", "features", "--out", tmp_path / "new")
    assert begun.code == 0
    assert callosum_site("init", "alpha", "--out", tmp_path / "new").code == 5
    site = made.sites / "alpha" / "site.toml"
    check = callosum_site("check", "--study", made.study_file, "--site", site)
    assert check.code == 0
    assert "alpha (train): 40 participants, 40 scans" in check.text
    assert re.search(r"sex: 40 participants, 40 scans  female \d+, male \d+", check.text)
    prepared = callosum_site(
        "prepare", "--study", made.study_file, "--site", site, "--workers", "1"
    )
    assert prepared.code == 0
    assert "40 participants, 40 samples" in prepared.text
    assert "0 left out" in prepared.text
    shown = callosum_site("prepare", "--study", made.study_file, "--site", site, "--sheet")
    assert shown.code == 3
    assert "a contact sheet shows prepared volumes" in shown.text


def test_check_tells_a_site_that_it_would_decline(callosum_site: Run, federation: Any) -> None:
    """Better on this screen than as a code on the coordinator's."""
    made = federation(FAST)
    site = made.sites / "alpha" / "site.toml"
    edit(site, policy__minimum_cohort=41)
    done = callosum_site("check", "--study", made.study_file, "--site", site)
    assert done.code == 4
    assert "40 participants are usable, policy.minimum_cohort is 41" in done.text


# Mistakes in what a simulation is given.


def simulated(callosum: Run, made: Any, out: str = "run") -> Done:
    return callosum("simulate", made.study_file, "--sites", made.sites, "--out", made.folder / out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective.targets": ["agee"]}, ["objective.targets", "agee"]),
        ({"backbone.name": "mlpp"}, ["backbone.name", "did you mean mlp?"]),
        ({"sites.train": ["alpha", "delta"]}, ["no site file below", "delta", "found: alpha"]),
        ({"finetuning": [{"name": "a", "target": "b"}]}, ["finetuning.0.target", '"b"']),
    ],
    ids=["target", "backbone", "site", "task"],
)
def test_what_a_study_names_and_nobody_has_is_exit_3(
    callosum: Run, federation: Any, changes: dict[str, Any], words: list[str]
) -> None:
    """Names are typed by hand in several files by several people."""
    made = federation(FAST)
    made.changes.update(changes)
    done = simulated(callosum, made)
    assert done.code == 3
    for word in words:
        assert word in done.text
    assert not (made.folder / "run").exists()


def test_two_site_files_of_one_name_are_refused(callosum: Run, federation: Any) -> None:
    """Which of two folders is the hospital is nobody's to guess."""
    made = federation(FAST)
    shutil.copytree(made.sites / "alpha", made.sites / "alpha-old")
    done = simulated(callosum, made)
    assert done.code == 3
    assert "both claim the name alpha" in done.text


def test_a_site_decides_on_its_own_role(callosum: Run, federation: Any) -> None:
    """A coordinator cannot make a judge train by listing it."""
    made = federation(FAST)
    edit(made.sites / "beta" / "site.toml", role="heldout")
    done = simulated(callosum, made)
    assert done.code == 3
    assert 'its own file says role = "heldout"' in done.text


# Sites whose data are not what they should be. Each is told by name; the others go on.


def no_rows(site: Path) -> None:
    edit(site / "site.toml", data__rows={"participant_id": "nobody"})


def one_participant(site: Path) -> None:
    edit_table(site, lambda rows: rows[:1])


def header_only(site: Path) -> None:
    text = (site / "table.csv").read_text()
    (site / "table.csv").write_text(text.splitlines()[0] + "\n")


def missing_column(site: Path) -> None:
    edit_table(site, lambda rows: [{k: v for k, v in row.items() if k != "depth"} for row in rows])


def renamed_column(site: Path) -> None:
    edit_table(
        site,
        lambda rows: [
            {("Depth" if k == "depth" else k): v for k, v in row.items()} for row in rows
        ],
    )


def duplicated_column(site: Path) -> None:
    lines = (site / "table.csv").read_text().splitlines()
    twice = [lines[0] + ",depth", *(f"{line},1" for line in lines[1:])]
    (site / "table.csv").write_text("\n".join(twice))


def no_table(site: Path) -> None:
    (site / "table.csv").unlink()


def not_text(site: Path) -> None:
    (site / "table.csv").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 64)


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (no_rows, "NO_DATA", ["no usable row with participant_id = nobody"]),
        (header_only, "NO_DATA", ["no usable row"]),
        (one_participant, "COHORT_TOO_SMALL", []),
        (missing_column, "NO_DATA", ['has no column "depth"']),
        (renamed_column, "NO_DATA", ['has no column "depth"; did you mean "Depth"?']),
        (duplicated_column, "NO_DATA", ['more than one column "depth"']),
        (no_table, "NO_DATA", ["table.csv does not exist"]),
        (not_text, "NO_DATA", ["table.csv"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_site_without_usable_data_is_named_and_the_quorum_decides(
    callosum: Run,
    federation: Any,
    damage: Callable[[Path], None],
    code: str,
    words: list[str],
) -> None:
    """One hospital's broken export must not end a study that can do without it."""
    made = federation({**FAST, "sites.quorum": 0})
    damage(made.sites / "beta")
    done = simulated(callosum, made)
    assert done.code == 6
    assert f"beta: {code}" in done.text
    assert "1 of 2 training sites can take part, the quorum is 2" in done.text
    for word in words:
        assert word in done.text
    made.changes["sites.quorum"] = 1
    done = simulated(callosum, made, "smaller")
    assert done.code == 0
    assert (made.folder / "smaller" / "results.csv").exists()
    final = json.loads((made.folder / "smaller" / "census.json").read_text())
    assert final["beta"]["refused"] == code


def test_labels_that_mean_nothing_are_named_and_left_out(
    callosum: Run, callosum_site: Run, federation: Any
) -> None:
    """Ages as text, decimal commas, codes nobody explained, -9999 and n/a, all in one export."""
    made = federation(FAST)

    def spoil(rows: list[dict[str, str]]) -> None:
        for row, age in zip(rows, ["-9999", "n/a", "", "fifty", "41,5", "-9999.0"], strict=False):
            row["age"] = age
        rows[6]["sex"], rows[7]["sex"], rows[8]["sex"] = "x", "n/a", "Female"

    edit_table(made.sites / "beta", spoil)
    site = made.sites / "beta" / "site.toml"
    check = callosum_site("check", "--study", made.study_file, "--site", site)
    assert check.code == 0
    assert "age: 34 participants" in check.text
    assert '"fifty" is not a number' in check.text
    assert '"41,5" is not a number; write the decimal point as .' in check.text
    assert '"x" is no known code' in check.text
    assert 'did you mean "female"?' in check.text
    done = simulated(callosum, made)
    assert done.code == 0
    held = json.loads((made.folder / "run" / "census.json").read_text())["beta"]["held"]
    assert (held["labels/age"], held["labels/sex"], held["scans"]) == (34, 37, 40)


def test_a_site_with_one_class_of_a_task_is_named_and_the_run_ends_well(
    callosum: Run, federation: Any
) -> None:
    """A hospital of controls has nothing to fine-tune, and much to give to pretraining."""
    task = {"name": "ill", "target": "diagnosis", "methods": ["linear"]}
    made = federation({**FAST, "finetuning": [task]})

    def healthy(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["diagnosis"] = "control"

    edit_table(made.sites / "beta", healthy)
    done = simulated(callosum, made)
    assert done.code == 0
    assert "fine-tuning ill, linear: beta did not take part: NO_DATA" in done.text
    rows = list(csv.DictReader((made.folder / "run" / "results.csv").open()))
    assert {row["site"] for row in rows if row["phase"] == "finetune"} == {"alpha"}


def test_a_target_that_no_site_holds_is_refused(callosum: Run, federation: Any) -> None:
    """Its head would stay as it was drawn, and be reported like the others."""
    made = federation(FAST, lacks={"alpha": ("age",), "beta": ("age",)})
    done = simulated(callosum, made)
    assert done.code == 4
    assert 'no training site holds labels of "age"' in done.text


def test_codes_that_the_study_does_not_know_are_exit_3(callosum: Run, federation: Any) -> None:
    """`codes` is the site's own file: its owner can mend it now."""
    made = federation(FAST)
    edit(made.sites / "beta" / "site.toml", targets__sex__codes={"F": "femal", "M": "male"})
    done = simulated(callosum, made)
    assert done.code == 3
    assert 'F stands for "femal"' in done.text
    assert 'did you mean "female"?' in done.text


# Run folders that hold something else.


def test_the_coordinator_sees_whom_its_books_stopped_and_accepts_them(
    callosum: Run, tmp_path: Path
) -> None:
    """Whoever decides must read why, and which count will hold; a mistyped name is no decision."""
    sites = [{"name": name, "role": "train", "data": "features"} for name in ("alpha", "beta")]
    about = {"name": "trio", "hub": "localhost:9443", "contact": "Jane Doe", "sites": sites}
    (tmp_path / "trio.toml").write_text(tomli_w.dumps(about))
    kits = tmp_path / "KITS"
    assert callosum("provision", tmp_path / "trio.toml", "--out", kits).code == 0
    hub = kits / "hub"
    kept = SiteBooks(open_hub(hub).books)
    for name in ("alpha", "beta"):
        order = Order(kind="census", study="a" * 64, run="b" * 64, site=name, arrays="c" * 64)
        told = Books(state="d" * 32, exposures=8, receipt=52, hash="e" * 64)
        kept.take(order, Report(order=order.id, site=name, kind="census", books=told))
    kept.stop("beta", "6 exposures after 8")
    text = callosum("books", "--hub", hub).text
    assert re.search(r"alpha\W+dddddddd\W+8\W+52", text)
    assert "beta is stopped since 20" in text
    assert "6 exposures after 8" in text
    done = callosum("books", "--hub", hub, "--accept", "gamma")
    assert (done.code, "nothing was seen of gamma; known: alpha, beta" in done.text) == (3, True)
    done = callosum("books", "--hub", hub, "--accept", "beta")
    assert (done.code, "must tell 8 exposures or more" in done.text) == (0, True)
    assert "stopped" not in callosum("books", "--hub", hub).text


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("pretraining.rounds", 2, "pretraining.rounds (was 1, is 2)"),
        ("seed", 8, "seed (was 7, is 8)"),
        ("targets.age.centre", 40.0, "targets.age.centre (was 50.0, is 40.0)"),
        ("splits.salt", "other", "splits.salt (was callosum, is other)"),
    ],
)
def test_an_edited_study_does_not_resume(
    callosum: Run, done: Any, key: str, value: Any, words: str
) -> None:
    """Half of one study and half of another is no result; the changed key is named."""
    before = sha256(done.folder / "run" / "results.csv")
    done.changes[key] = value
    ended = simulated(callosum, done)
    assert ended.code == 5
    assert words in ended.text
    assert "Give a new --out" in ended.text
    assert sha256(done.folder / "run" / "results.csv") == before


def test_a_finished_run_is_not_done_again(callosum: Run, done: Any) -> None:
    """The same command resumes; with nothing left to do it changes no result."""
    run = done.folder / "run"
    kept = {path: sha256(path) for path in [*run.rglob("*.safetensors"), run / "results.csv"]}
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert simulated(callosum, done).code == 0
    assert {path: sha256(path) for path in kept} == kept
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == times


def other_format(run: Path) -> None:
    about = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**about, "format": 99}))


def torn_provenance(run: Path) -> None:
    text = (run / "provenance.json").read_text()
    (run / "provenance.json").write_text(text[: len(text) // 2])


def foreign_files(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()
    (run / "thesis.docx").write_text("not ours")


def a_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("a file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_format, "run of format 99, this version reads 3"),
        (torn_provenance, "provenance.json cannot be read"),
        (foreign_files, "holds thesis.docx and is no run"),
        (a_file, "is a file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_is_not_this_run_is_left_alone(
    callosum: Run, done: Any, change: Callable[[Path], None], words: str
) -> None:
    """Nobody's work is overwritten, whatever --out was given by mistake."""
    change(done.folder / "run")
    ended = simulated(callosum, done)
    assert ended.code == 5
    assert words in ended.text


def test_one_process_at_a_time_works_in_a_run(callosum: Run, done: Any) -> None:
    """The command is started twice when the first terminal seems to hang."""
    with open_run(done.folder / "run", load_study(done.study_file)):
        ended = simulated(callosum, done)
        judged = callosum(
            "evaluate", done.folder / "run", "--site", done.sites / "omega" / "site.toml"
        )
    assert ended.code == judged.code == 5
    assert "another process is working in" in ended.text
    assert simulated(callosum, done).code == 0


@pytest.mark.parametrize("command", ["show", "report"])
def test_runs_are_shown_and_what_is_no_run_is_told(
    callosum: Run, done: Any, command: str, tmp_path: Path
) -> None:
    """Looking at a run needs no site and no study file."""
    assert callosum(command, done.folder / "run").code == 0
    ended = callosum(command, tmp_path)
    assert ended.code == 5
    assert "is not a run" in ended.text


# Judging afterwards.


def judge(callosum: Run, done: Any, site: Path) -> Done:
    return callosum("evaluate", done.folder / "run", "--site", site)


def fresh(done: Any, name: str, role: str = "heldout", of: str = "omega") -> Path:
    """A new site file with data that no other site has."""
    folder = done.sites / name
    shutil.copytree(done.sites / of, folder, ignore=shutil.ignore_patterns(".callosum"))
    edit(folder / "site.toml", name=name, role=role)

    def other_people(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["participant_id"] = f"{name}-{row['participant_id']}"
            row["depth"] = str(float(row["depth"]) + 0.001)

    edit_table(folder, other_people)
    return folder / "site.toml"


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda done: done.sites / "alpha" / "site.toml", 'says role = "train"'),
        (lambda done: fresh(done, "sigma", "train"), 'says role = "train"'),
    ],
    ids=["training site", "role train"],
)
def test_a_site_that_says_it_trains_cannot_judge(
    callosum: Run, done: Any, prepare: Callable[[Any], Path], words: str
) -> None:
    """Its own file is the first of three locks."""
    ended = judge(callosum, done, prepare(done))
    assert ended.code == 8
    assert words in ended.text


def test_a_training_site_that_changed_its_role_cannot_judge(callosum: Run, done: Any) -> None:
    """The run remembers who trained; the second lock."""
    edit(done.sites / "alpha" / "site.toml", role="heldout")
    ended = judge(callosum, done, done.sites / "alpha" / "site.toml")
    assert ended.code == 8
    assert "alpha is a training site" in ended.text


def test_training_scans_under_another_name_cannot_judge(callosum: Run, done: Any) -> None:
    """A folder copied and renamed, participants renamed with it; the third lock."""
    before = sha256(done.folder / "run" / "results.csv")
    folder = done.sites / "renamed"
    shutil.copytree(done.sites / "alpha", folder, ignore=shutil.ignore_patterns(".callosum"))
    edit(folder / "site.toml", name="renamed", role="heldout")

    def rename(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{**row, "participant_id": f"x{i}"} for i, row in enumerate(reversed(rows))]

    edit_table(folder, rename)
    ended = judge(callosum, done, folder / "site.toml")
    assert ended.code == 8
    assert "shares" in ended.text
    assert "with alpha" in ended.text
    assert sha256(done.folder / "run" / "results.csv") == before


def test_a_fresh_site_adds_rows_and_again_changes_nothing(callosum: Run, done: Any) -> None:
    """Judging is safe to repeat, and never touches what others have measured."""
    results = done.folder / "run" / "results.csv"
    before = results.read_text().splitlines()
    site = fresh(done, "sigma")
    ended = judge(callosum, done, site)
    assert ended.code == 0
    after = results.read_text().splitlines()
    per_site = [line for line in before if ",all," not in line]
    assert set(per_site) < set(after)
    own = [row for row in csv.DictReader(results.open()) if row["site"] == "sigma"]
    assert {row["role"] for row in own} == {"heldout"}
    assert {"mae", "r"} <= {row["metric"] for row in own}
    assert judge(callosum, done, site).code == 0
    assert results.read_text().splitlines() == after
    assert simulated(callosum, done).code == 0
    assert results.read_text().splitlines() == after


def test_a_site_called_pooled_cannot_judge(callosum: Run, done: Any) -> None:
    """The pooled model's own census has that name in the run folder."""
    ended = judge(callosum, done, fresh(done, "pooled"))
    assert ended.code == 3
    assert "pooled" in ended.text


def test_an_unfinished_run_cannot_be_judged(callosum: Run, done: Any) -> None:
    """There is no model yet; the sentence says which command makes one."""
    (done.folder / "run" / "checkpoints" / "final.safetensors").unlink()
    ended = judge(callosum, done, done.sites / "omega" / "site.toml")
    assert ended.code == 5
    assert "is not finished; simulate it first" in ended.text


def test_a_site_too_small_to_judge_says_so(callosum: Run, done: Any) -> None:
    """Three participants are no judgement, and their numbers would point at them."""
    site = fresh(done, "sigma")
    edit_table(site.parent, lambda rows: rows[:3])
    ended = judge(callosum, done, site)
    assert ended.code == 4
    assert "COHORT_TOO_SMALL" in ended.text


# A disk that fills.


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of `size` bytes at `folder`; what comes back changes its size."""

    def mount(*options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"this process may not mount a small disk: {done.stderr.strip()}")

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command to make a small disk with")
    folder.mkdir(exist_ok=True)
    mount("-o", f"size={size}")
    try:
        yield lambda larger: mount("-o", f"remount,size={larger}")
    finally:
        # lazily: samples of the last site may still be mapped
        subprocess.run(["umount", "-l", str(folder)], check=False, timeout=30)


@pytest.fixture(scope="module")
def undisturbed(module_federation: Any) -> Any:
    """A run with enough space: its final weights and results, and the bytes it and its sites need."""
    federation = module_federation({**JUDGED, "pretraining.rounds": 3, "backbone.hidden": [64, 64]})
    clean = shutil.copytree(federation.folder, federation.folder.with_name("clean"))
    federation.simulate()
    return federation, clean


@pytest.mark.parametrize("share", [0.35, 0.55, 0.75, 0.95])
def test_a_disk_that_fills_costs_nothing_but_time(
    callosum: Run, undisturbed: Any, tmp_path: Path, share: float
) -> None:
    """The first answer says that the disk is full; the same command with space ends as if it never was."""
    federation, clean = undisturbed
    whole = sum(
        -(-path.stat().st_size // 4096) * 4096
        for path in federation.folder.rglob("*") if path.is_file()
    )  # fmt: skip
    disk = tmp_path / "disk"
    with small_disk(disk, int(whole * share)) as resize:
        shutil.copytree(clean, disk / "f")
        made = type(federation)(disk / "f", federation.base, dict(federation.changes))
        ended = simulated(callosum, made)
        assert ended.code in {6, 7} or "DISK_FULL" in ended.text, ended
        assert re.search(r"disk|space", ended.text, re.IGNORECASE)
        resize(8 * whole)
        ended = simulated(callosum, made)
        assert ended.code == 0, ended.text
        for name in ("checkpoints/final.safetensors", "results.csv"):
            assert sha256(disk / "f" / "run" / name) == sha256(federation.folder / "run" / name)


@pytest.mark.slow
def test_a_whole_simulation_from_a_shell(federation: Any) -> None:
    """The real command in a process of its own, started again by itself with its allocator set."""
    made = federation(JUDGED)
    words = [
        "-c", "from deploy.cli import main; main()", "simulate", str(made.study_file),
        "--sites", str(made.sites), "--out", str(made.folder / "run"),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert "report: " in ended.stdout
        assert "Traceback" not in ended.stderr
