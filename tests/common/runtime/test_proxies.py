"""A hospital's proxies are kept for the net, and never asked for this machine itself."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.courier.node import flower_environment
from common.runtime.proxies import spare_loopback, without_proxies, without_socks

NAMES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


@pytest.mark.parametrize("case", [str.lower, str.upper])
@pytest.mark.parametrize("given", [{}, {"NO_PROXY": "intra"}, {"no_proxy": "intra,127.0.0.1"}])
def test_libraries_go_directly_to_this_machine(
    monkeypatch: pytest.MonkeyPatch, case: object, given: dict[str, str]
) -> None:
    """The hub, behind a proxy, waited for its own SuperLink for ever without a word."""
    for name in (*NAMES, *map(str.upper, NAMES), "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    environment = {case(name): "http://proxy.example:3128" for name in NAMES} | given  # type: ignore[operator]
    spare_loopback(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for host in ("127.0.0.1", "::1", "localhost"):
        assert urllib.request.proxy_bypass(host)
        with httpx.Client() as client:
            shown = f"[{host}]" if ":" in host else host
            assert client._transport_for_url(httpx.URL(f"https://{shown}:1/")) is client._transport
    with httpx.Client() as client:
        hub = client._transport_for_url(httpx.URL("https://hub.example/"))
        assert hub is not client._transport
    assert ("intra" in environment["no_proxy"]) == bool(given)


def test_what_grpc_looks_at_first_is_extended_too() -> None:
    """With `no_grpc_proxy` set, gRPC does not read `no_proxy`."""
    environment = {"no_grpc_proxy": "intra"}
    spare_loopback(environment)
    assert environment["no_grpc_proxy"] == "intra,127.0.0.1,::1,localhost"


def test_a_socks_proxy_does_not_end_a_program_of_flowers(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx without its SOCKS library ends at the sight of one, even if it would not be asked."""
    for name in (*NAMES, *map(str.upper, NAMES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy.example:1080")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    found = flower_environment(Path("/home"))
    assert "ALL_PROXY" not in found
    assert found["https_proxy"] == "http://proxy.example:3128"
    assert found["NO_PROXY"].endswith("127.0.0.1,::1,localhost")
    assert without_socks({"ALL_PROXY": "socks5h://a", "HOME": "socks"}) == {"HOME": "socks"}
    assert without_proxies({"Https_Proxy": "http://a", "NO_PROXY": "b"}) == {"NO_PROXY": "b"}


PLACES = st.lists(
    st.from_regex(r"[a-z]{1,6}(\.[a-z]{2,3})?|10\.0\.0\.[1-9]|\*?", fullmatch=True), max_size=3
)


@given(
    st.dictionaries(
        st.sampled_from(["NO_PROXY", "no_proxy", "no_grpc_proxy", "HOME"]),
        st.builds(
            lambda places, mark: mark.join(places), PLACES, st.sampled_from([",", ", ", ",,"])
        ),
    )
)
def test_loopback_is_spared_whatever_was_excepted_before(environment: dict[str, str]) -> None:
    """And what was excepted stays so, in both spellings."""
    before = dict(environment)
    spare_loopback(environment)
    assert environment["NO_PROXY"] == environment["no_proxy"]
    for name in {"NO_PROXY", "no_grpc_proxy"} & environment.keys():
        listed = environment[name].split(",")
        assert {"127.0.0.1", "::1", "localhost"} <= set(listed)
        assert "" not in listed
        given_before = before.get(name, "").replace(" ", "").split(",")
        assert set(filter(None, given_before)) <= set(listed)
    once = dict(environment)
    spare_loopback(environment)
    assert environment == once
