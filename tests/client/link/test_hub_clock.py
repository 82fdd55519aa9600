"""A node that is not let in hears that its clock is why, and by how much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from client.courier import node
from client.link.hub_clock import clock_fault
from common.runtime.supervision import Child
from tests.client.doctor.loopback import Door, port_of

pytest_plugins = ("tests.client.doctor.fixtures",)


@pytest.mark.parametrize(
    ("skew_s", "words"),
    [
        (-20, "s ahead of the hub's; at most 5 s ahead or 305 s behind is let in"),
        (400, "s behind the hub's; at most 5 s ahead or 305 s behind is let in"),
        (0, "ask the coordinator for a new key"),
    ],
)
def test_the_difference_is_told(open_door: Callable[..., Door], skew_s: float, words: str) -> None:
    """Flower says no more than 401, and the coordinator no more than TRANSPORT."""
    told = clock_fault(f"localhost:{port_of(open_door(skew_s=skew_s))}")
    assert words in told
    if skew_s:
        assert any(f"clock is {abs(skew_s) + one:.0f} s" in told for one in (-1, 0, 1)), told


def test_nobody_is_asked_for_a_date_in_vain(tmp_path: Path) -> None:
    """What Flower says to a wrong clock it says to nothing else, so the likely reason is named."""
    assert "probably for its clock: at most 5 s ahead" in clock_fault("localhost:1")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Client error '401 Unauthorized' for url 'https://hub/v1/fleet/activate-node'", ["20 s"]),
        ("[code: 2004] Node could not be activated", []),  # a key that the hub does not know
    ],
)
def test_the_nodes_log_names_the_clock_where_flower_refused_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: str, words: list[str]
) -> None:
    """A SuperNode ends without knowing why; whoever reads the node's log is told."""
    monkeypatch.setattr(node, "deactivate_node", lambda *_: None)
    monkeypatch.setattr(node, "clock_fault", lambda hub: "20 s ahead")
    child = Child("SuperNode", [], {}, Path("absent"))
    child.said = said
    node._see_to(child, "hub:443", SimpleNamespace(ca=None, node_key=None))  # type: ignore[arg-type]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * len(words)
    assert all(word in caplog.text for word in words)
