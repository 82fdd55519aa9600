"""What a command says is what was meant, and what a disk refuses is one line with an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys

import pytest
import typer

from common.errors import INTERRUPTED, SettingError
from common.printable import printable
from common.runtime import command, progress
from common.runtime.progress import say
from common.runtime.supervision import fault_in

ODD = ("fd00:1234::5", "a :100: b", "[red]x[/red]", "x:100:y/site.toml", "[/]", "Universit\udce4t")
SHOWN = {"Universit\udce4t": r"Universit\xe4t"}


def left_with(error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """How a command ends that raises `error`: exit code, and what it says."""
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    argv, sys.argv = sys.argv, ["it"]
    try:
        code = command._exit_code(app, "it")
    finally:
        sys.argv = argv
    return code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def _to_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.console, "_file", None)


@pytest.mark.parametrize("text", ODD)
def test_texts_of_people_are_printed_as_they_are(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A screen library turns `:100:` into a picture and takes brackets for colours."""
    say(text)
    assert capsys.readouterr().err == SHOWN.get(text, text) + "\n"
    progress.console.print(printable(text))
    assert capsys.readouterr().err == SHOWN.get(text, text) + "\n"
    code, told = left_with(SettingError(f"hub is {text}"), capsys)
    assert (code, told) == (3, f"error: hub is {SHOWN.get(text, text)}\n")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EROFS])
def test_what_a_disk_refuses_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback is for defects of ours; this is none."""
    error = OSError(number, os.strerror(number), "/data/x")
    code, told = left_with(error, capsys)
    assert code == 7
    assert told == f"error: /data/x: {os.strerror(number)}; see to it, run again\n"
    with pytest.raises(FileNotFoundError):
        left_with(FileNotFoundError(errno.ENOENT, "absent", "/data/x"), capsys)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("INFO: starting\nINFO: ending\n", ""),
        (
            "ERROR: [Errno 98] while binding on ('127.0.0.1', 9093): address already in use\nINFO: Bye.\n",
            "port 9093 is in use by another program",
        ),
        ("Traceback (most recent call last):\n  x\nImportError: no b\n", "ImportError: no b"),
    ],
)
def test_a_fault_is_found_in_what_a_program_said(said: str, fault: str) -> None:
    """Libraries end politely after it, in lines that explain nothing."""
    assert fault_in(said) == fault


def test_an_error_that_a_library_makes_of_ctrl_c_is_ctrl_c(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A library in C that is being loaded says "initialization failed"; nothing has failed."""
    app = typer.Typer()

    @app.command()
    def load() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    argv, sys.argv = sys.argv, ["it"]
    try:
        code = command._exit_code(app, "it")
    finally:
        sys.argv = argv
    assert (code, capsys.readouterr().err) == (
        INTERRUPTED,
        "stopped; the same command goes on from here\n",
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_without_ctrl_c_stays_a_defect_of_ours() -> None:
    """A traceback that nobody sees is never mended."""
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise ImportError("initialization failed")

    argv, sys.argv = sys.argv, ["it"]
    try:
        with pytest.raises(ImportError):
            command._exit_code(app, "it")
    finally:
        sys.argv = argv
