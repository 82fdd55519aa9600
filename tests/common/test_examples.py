"""Every plug-in has a commented example, made from its model."""

from __future__ import annotations

import doctest
import tomllib
from typing import Annotated, Literal

from pydantic import Field

from client.templates import site_template
from common import examples
from common.examples import example
from common.settings import Table
from server.templates import study_template


class Strange(Table):
    """Keys of every sort, as a package from outside may have them."""

    kind: Literal["strange"] = Field(description="This kind.")
    folder: str = Field(description="Where the runs are.")
    width: Annotated[int, Field(ge=0)] = Field(description="Samples across.")
    ways: Literal["fast", "slow"] = Field(description="How.")
    names: tuple[str, ...] = Field(description="Of whom.", examples=[["a", "b c"]])
    kept: float = Field(0.5, description="As it is.", examples=[0.5])
    other: dict[str, str] = Field({}, description="Something else.", examples=[{"x y": "z"}])
    silent: bool = Field(True, description="Nobody asks for it.")


def test_an_example_shows_what_is_required_and_what_is_worth_knowing() -> None:
    """It parses as it stands, and again with the remarks taken away."""
    text = example(Strange, "data", kind="strange")
    found = tomllib.loads(text)["data"]
    assert found == {
        "kind": "strange", "folder": "", "width": 0, "ways": "fast", "names": ["a", "b c"],
        "kept": 0.5,
    }  # fmt: skip
    assert tomllib.loads(text.replace("# other", "other"))["data"]["other"] == {"x y": "z"}
    assert "silent" not in text
    assert text.count("# Where the runs are.") == 1


def test_the_documented_example_is_right() -> None:
    """A docstring that is wrong is worse than none."""
    assert doctest.testmod(examples).failed == 0


def test_a_kind_from_outside_has_templates(monkeypatch) -> None:
    """`study init --kind`, `callosum-site init --kind` and provision know what is installed."""
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "plugins"))
    study = tomllib.loads(study_template("ours", "toy-lines"))
    assert study["data"] == {"kind": "toy-lines", "width": 0}
    assert study["backbone"]["name"] == "mlp"  # its layout is a table
    assert tomllib.loads(site_template("here", "toy-lines"))["data"]["folder"] == ""
