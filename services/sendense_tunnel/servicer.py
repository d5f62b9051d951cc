"""The tunnel's gRPC edge."""

from __future__ import annotations

from typing import Any

from sendense.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc
from sendense_tunnel.control_doors import ControlDoors


class TunnelServicer(tunnel_pb2_grpc.TunnelServiceServicer):
    """Tells which agents can be reached."""

    def __init__(self, doors: ControlDoors) -> None:
        self._doors = doors

    async def ListConnections(
        self, request: tunnel_pb2.ListConnectionsRequest, context: Any
    ) -> tunnel_pb2.ListConnectionsResponse:
        """Lists each reachable agent once, with its current control connection."""
        del request, context
        response = tunnel_pb2.ListConnectionsResponse()
        for control, path in self._doors.connections():
            entry = response.connections.add(agent_id=control.agent_id, socket_path=str(path), peer=control.peer)
            entry.connected_at.FromDatetime(control.connected_at)
        return response
