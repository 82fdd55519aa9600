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


@pytest.mark.parametrize(("skew_s", "way"), [(-20, "ahead of"), (400, "behind")])
def test_the_difference_is_told(open_door: Callable[..., Door], skew_s: float, way: str) -> None:
    """Flower ends without a word, and the coordinator sees no more than TRANSPORT."""
    told = clock_fault(f"localhost:{port_of(open_door(skew_s=skew_s))}") or ""
    near = [f"clock is {abs(skew_s) + one:.0f} s {way} the hub's" for one in (-1, 0, 1)]
    assert any(text in told for text in near), told
    assert "at most 5 s ahead or 305 s behind is let in" in told


@pytest.mark.parametrize("skew_s", [-2, 0, 200])
def test_a_clock_that_is_let_in_is_no_fault(open_door: Callable[..., Door], skew_s: float) -> None:
    """The same end follows where a hub has forgotten a node, as after its own restart."""
    assert clock_fault(f"localhost:{port_of(open_door(skew_s=skew_s))}") == ""
    assert clock_fault("localhost:1") is None


ENDED = "INFO: SuperNode terminated gracefully."
REFUSED = f"INFO: Starting Flower SuperNode\n{ENDED}"


@pytest.mark.parametrize(
    ("said", "fault", "told"),
    [
        (REFUSED, "20 s ahead", "20 s ahead"),
        (REFUSED, "", ""),
        (REFUSED, None, "probably for this machine's clock"),
        (ENDED, None, ""),  # its start is too long ago to be in view
        (REFUSED.replace("\n", "\nSuperNode ID: 7\n"), None, ""),  # let in before: the hub is away
        ("[code: 2004] Node could not be activated", "20 s ahead", ""),  # a key unknown to the hub
    ],
)
def test_the_nodes_log_names_the_clock_where_flower_refused_it(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    said: str,
    fault: str | None,
    told: str,
) -> None:
    """A SuperNode ends without knowing why; whoever reads the node's log is told."""
    monkeypatch.setattr(node, "deactivate_node", lambda *_: None)
    monkeypatch.setattr(node, "clock_fault", lambda hub: fault)
    child = Child("SuperNode", [], {}, Path("absent"))
    child.said = said
    node._see_to(child, "hub:443", SimpleNamespace(ca=None, node_key=None))  # type: ignore[arg-type]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * bool(told)
    assert told in caplog.text
