"""Flower's control API, as much of it as the hub needs: nodes in, runs in, how they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from common.errors import CallosumError

_OVER: Final = "finished"


@dataclass(frozen=True, slots=True)
class Control:
    """A connection to one SuperLink's control API on this machine."""

    client: ControlHttpClient

    @classmethod
    def at(cls, address: str, ca: Path) -> Self:
        """Connect to `address` (host:port), whose certificate `ca` has signed."""
        return cls(
            ControlHttpClient.from_server_address(
                server_address=address,
                insecure=False,
                root_certificates=ca.read_bytes(),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )
        )

    @staticmethod
    def key_of(file: Path) -> bytes:
        """A node's public key as Flower compares it."""
        return public_key_to_bytes(load_ssh_public_key(file.read_bytes()))  # type: ignore[arg-type]

    def register(self, name: str, key: bytes) -> int:
        """Let the holder of a node key in; its node id."""
        return int(self.client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)

    def nodes(self) -> dict[bytes, int]:
        """Ids of the nodes that are let in, by key."""
        nodes = self.client.ListNodes(ListNodesRequest()).nodes_info
        return {bytes(n.public_key): int(n.node_id) for n in nodes if n.status != "unregistered"}

    def unregister(self, node: int) -> None:
        """Shut a node out."""
        self.client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def online(self) -> set[int]:
        """Nodes that are connected now."""
        nodes = self.client.ListNodes(ListNodesRequest()).nodes_info
        return {int(node.node_id) for node in nodes if node.status == "online"}

    def start(self, bundle: bytes, config: Mapping[str, str]) -> int:
        """Start a run of an app bundle; its id."""
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config))
        )
        answer = self.client.StartRun(request)
        if not answer.HasField("run_id"):
            raise CallosumError("Flower did not start the run; its log says why")
        return int(answer.run_id)

    def stop(self, run: int) -> None:
        """Stop a run."""
        self.client.StopRun(StopRunRequest(run_id=run))

    def going(self) -> set[int]:
        """Runs that are not over."""
        runs = self.client.ListRuns(ListRunsRequest()).run_dict
        return {int(run) for run, about in runs.items() if about.status.status != _OVER}

    def close(self) -> None:
        """Let go of the connection."""
        self.client.close()
