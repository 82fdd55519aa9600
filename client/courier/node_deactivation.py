"""Node deactivation: tells the hub that a SuperNode is gone which could not say so itself.

Flower takes a node that crashed for connected until its heartbeat has been missing for a minute,
and refuses to let it in again as long. Said on its behalf, with its own key, it is back in seconds.
"""

from __future__ import annotations

import re
from logging import getLogger
from pathlib import Path
from typing import Final

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

_log = getLogger("callosum.node")
NAMED: Final = re.compile(r"SuperNode ID: (\d+)")
_LAST: Final = 1 << 20  # bytes of the log; the id is said once, at the start


def deactivate_node(hub: str, ca: Path, node_key: Path, log: Path) -> None:
    """Deactivate the node whose SuperNode wrote `log`; whatever fails is left to Flower's clock."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LAST))
            named = NAMED.findall(stream.read().decode(errors="replace"))
        key = load_ssh_private_key(node_key.read_bytes(), password=None)
        if not named or not isinstance(key, EllipticCurvePrivateKey):
            return
        with FleetHttpClient.from_server_address(
            hub,
            insecure=False,
            root_certificates=ca.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
        ) as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=int(named[-1])))
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        _log.info("the hub was not told that the SuperNode is gone: %s", error)
