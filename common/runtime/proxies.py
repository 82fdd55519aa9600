"""Proxies of the environment are for the net: no process of ours is to be reached through one.

Hospitals set them for a whole machine. A library that asks a proxy for 127.0.0.1 waits for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Final

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_EXCEPT: Final = ("NO_PROXY", "no_proxy")
_GRPC_EXCEPT: Final = "no_grpc_proxy"  # gRPC looks at this one first
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Except this machine's own addresses from whatever proxies `environment` names.

    >>> environment = {"https_proxy": "http://proxy:3128", "no_proxy": "intranet"}
    >>> spare_loopback(environment)
    >>> environment["NO_PROXY"]
    'intranet,127.0.0.1,::1,localhost'
    """
    given = [environment.get(name, "") for name in _EXCEPT]
    environment.update(dict.fromkeys(_EXCEPT, _with_loopback(given)))
    if _GRPC_EXCEPT in environment:
        environment[_GRPC_EXCEPT] = _with_loopback([environment[_GRPC_EXCEPT]])


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for what speaks on loopback alone."""
    return {key: value for key, value in environment.items() if key.lower() not in _PROXIES}


def without_socks(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without SOCKS proxies: Flower's programs end at the sight of one."""
    return {
        key: value
        for key, value in environment.items()
        if key.lower() not in _PROXIES or not value.lower().startswith("socks")
    }


def _with_loopback(given: list[str]) -> str:
    listed = [place.strip() for text in given for place in text.split(",")]
    return ",".join(dict.fromkeys([*filter(None, listed), *_LOOPBACK]))
