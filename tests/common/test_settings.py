"""A settings file is read whole or refused with the place and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from common.errors import SettingError
from common.settings import Table, checked, keys, line_of, read_toml


class Inner(Table):
    depth: int = Field(1, ge=1, description="How deep.")
    mode: Literal["slow", "fast"] = Field("slow", description="How fast.")


class Outer(Table):
    name: str = Field(description="A name.")
    share: float = Field(0.5, ge=0, lt=1, description="A share.")
    on: bool = Field(True, description="A switch.")
    words: tuple[str, ...] = Field((), description="Some words.")
    inner: Inner = Field(Inner(), description="A table.")
    many: tuple[Inner, ...] = Field((), description="Tables.")
    by_name: dict[str, Inner] = Field({}, description="Tables by name.")


def fault(folder: Path, text: str | bytes) -> str:
    file = folder / "file.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SettingError) as caught:
        checked(Outer, read_toml(file), file=file)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name = ", "not valid TOML"),
        (b'name = "a"\nname = "b"', "not valid TOML"),
        (b"name = [" + b"[" * 100_000, "nested too deeply"),
        (b"share = " + b"9" * 5000, "not valid TOML"),
        (b'name = "\xff\xfe"', "cannot be read"),
        ("name = 'a'".encode("utf-16"), "cannot be read"),
        (b"\x00" * 20, "not valid TOML"),
        (b"#" * (4 << 20) + b"#", "larger than 4 MiB"),
    ],
    ids=["cut", "twice", "nested", "digits", "latin", "utf-16", "nul", "large"],
)
def test_a_file_that_is_no_toml_is_refused_by_name(
    tmp_path: Path, content: bytes, words: str
) -> None:
    """People save in the wrong encoding and commit half a merge; a traceback helps none of them."""
    message = fault(tmp_path, content)
    assert words in message
    assert "file.toml" in message


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    """A typing error in a path is the commonest mistake of all."""
    with pytest.raises(SettingError, match=r"none\.toml does not exist"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(SettingError, match="cannot be read: .*directory"):
        read_toml(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    """Editors on Windows write both without asking."""
    file = tmp_path / "file.toml"
    file.write_bytes(b'\xef\xbb\xbfname = "a"\r\nshare = 0.25\r\n[inner]\r\ndepth = 0\r\n')
    with pytest.raises(SettingError, match=r"inner\.depth is 0; .*1.*file\.toml, line 4\)"):
        checked(Outer, read_toml(file), file=file)
    assert line_of(file, "name") == ", line 1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["name is missing", "required"]),
        ("naem = 'a'\nname = 'b'", ["naem is not a known key", "did you mean name?", "line 1"]),
        ("name = 'a'\nzzz = 1", ["zzz is not a known key", "known keys: by_name, inner", "line 2"]),
        ("name = 'a'\n[inner]\ndept = 2", ["inner.dept", "did you mean depth?", "line 3"]),
        ("name = 'a'\n[by_name.x]\nmod = 'fast'", ["by_name.x.mod", "mean mode?", "line 3"]),
        (
            "name = 'a'\n[[many]]\ndepth = 1\n[[many]]\n# depth = 3\ndepht = 2",
            ["many.1.depht", "did you mean depth?", "line 6"],
        ),
        ("name = 'a'\n[[many]]\ndepth = 1\n[[many]]\ndepth = 0", ["many.1.depth is 0", "line 5"]),
        ("name = 3", ["name is 3", "valid string", "line 1"]),
        ("name = 'a'\nshare = '0.5'", ['share is "0.5"', "valid number", "line 2"]),
        ("name = 'a'\nshare = true", ["share is true", "valid number", "line 2"]),
        ("name = 'a'\non = 'yes'", ['on is "yes"', "valid boolean", "line 2"]),
        ("name = 'a'\ninner.depth = 1.0", ["inner.depth is 1.0", "valid integer", "line 2"]),
        ("name = 'a'\n[inner]\ndepth = true", ["inner.depth is true", "integer", "line 3"]),
        ("name = 'a'\nwords = 'b'", ['words is "b"', "valid list", "line 2"]),
        ("name = 'a'\nwords = [\n 'b', 3]", ["words.1 is 3", "valid string", "line 2"]),
        ("name = 'a'\ninner = 3", ["inner is 3", "a table of keys is needed", "line 2"]),
        ("name = 'a'\nby_name = 3", ["by_name is 3", "a table of keys is needed", "line 2"]),
        ("name = 'a'\nshare = 1.0", ["share is 1.0", "less than 1", "line 2"]),
        ("name = 'a'\nshare = nan", ["share is nan", "finite", "line 2"]),
        ("name = 'a'\nshare = -inf", ["share is -inf", "finite", "line 2"]),
        ("name = 'a'\n[inner]\nmode = 'quick'", ['inner.mode is "quick"', "'slow'", "'fast'"]),
        ('"name" = "a"\n"share" = 2', ["share is 2", "line 2"]),
        ("name = 'a'\n[ inner ] # here\n depth=0", ["inner.depth is 0", "line 3"]),
        ("name = 'a'\nby_name = {x = {depth = 0}}", ["by_name.x.depth is 0", "line 2"]),
    ],
)
def test_a_fault_names_key_value_need_and_line(tmp_path: Path, text: str, words: list[str]) -> None:
    """The reader edits a file: key, line, what stands there, what should."""
    message = fault(tmp_path, text)
    for word in words:
        assert word in message
    assert "file.toml" in message


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """One error at a time makes a study of ten sites a day's work."""
    message = fault(tmp_path, "share = 2\nnmae = 'a'\n[inner]\ndepth = 0")
    assert len(message.splitlines()) == 4


def test_a_long_value_is_shown_short(tmp_path: Path) -> None:
    """Somebody pastes a table into a number; the message stays one line."""
    assert len(fault(tmp_path, f"name = 'a'\nshare = '{'x' * 9000}'")) < 400


@given(st.text(max_size=200))
def test_whatever_a_file_holds_it_is_a_value_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """A settings file is outside input."""
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        checked(Outer, read_toml(file), file=file)
    except SettingError as error:
        assert "any.toml" in str(error)


def test_keys_are_listed_at_every_depth_with_defaults() -> None:
    """The documentation's tables come from here."""
    found = {key: default for key, default, _ in keys(Outer)}
    assert found["name"] == "required"
    assert found["inner.depth"] == "1"
    assert found["many.NAME.mode"] == '"slow"'
    assert found["by_name.NAME.depth"] == "1"
    assert found["on"] == "true"
