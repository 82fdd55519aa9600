"""Every leak that is planted is caught: a figure on people who trained is no figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.leaks import LEAKS, Ground, ground


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return ground(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: str(leak.__name__))
def test_a_planted_leak_is_caught(on: Ground, tmp_path: Path, leak: object) -> None:
    """The table of `make leaks`, row by row; what is said names the site and what it shares."""
    assert callable(leak)
    assert leak(on, tmp_path), leak.__doc__
