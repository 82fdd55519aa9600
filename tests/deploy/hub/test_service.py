"""A hub that cannot serve says why, on its screen and to whoever looks on at a run."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.standing import read_json, removed, short_folder, standing, until

PROXIED = ("http_proxy", "HTTPS_PROXY", "https_proxy", "grpc_proxy")


def test_a_hub_behind_a_proxy_whose_port_is_taken_says_so_and_then_serves(
    federation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said nothing: not that the port was taken, nor that it asked a proxy for itself."""
    made, folder = federation(), short_folder()
    try:
        with standing(folder, {"alpha": ("train", made.sites / "alpha" / "site.toml")}) as there:
            run = there.hub / "runs" / made.study.name
            run.mkdir(parents=True)
            (run / "wanted.json").write_text('{"wanted": "running", "since": 1.0}')
            out = there.folder / "hub.out"
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.delenv(name, raising=False)
            for name in PROXIED:
                monkeypatch.setenv(name, "http://127.0.0.1:9")
            monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
            with socket.create_server(("127.0.0.1", there.port)):
                there.start_hub()
                why = f"port {there.port} is in use by another program"
                state = until(
                    lambda: read_json(run / "state.json").get("error"), 60, "error of the run"
                )
                assert state == f"the hub cannot serve: {why}"
                assert f"SuperLink cannot start: {why}; again in 1 s" in out.read_text()
            until(lambda: "SuperLink serves on" in out.read_text(), 90, "hub that serves")
    finally:
        removed(folder)
