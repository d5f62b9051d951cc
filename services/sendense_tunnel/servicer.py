"""The tunnel's gRPC edge."""

from __future__ import annotations

from typing import Any

from sendense.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc
from sendense_tunnel.connections import Connections
from sendense_tunnel.control_doors import ControlDoors


class TunnelServicer(tunnel_pb2_grpc.TunnelServiceServicer):
    """Tells which agents can be reached and how they dial, and cuts them off.

    Args:
        doors: Where control is offered.
        connections: All open connections.
        host_key: The SSH host key, in OpenSSH's one-line form.
        port: TCP port that is listened on.
    """

    def __init__(self, doors: ControlDoors, connections: Connections, host_key: str, port: int) -> None:
        self._doors = doors
        self._connections = connections
        self._host_key = " ".join(host_key.split()[:2])
        self._port = port

    async def GetTunnel(self, request: tunnel_pb2.GetTunnelRequest, context: Any) -> tunnel_pb2.Tunnel:
        """Tells where agents dial, and the key that they pin."""
        del request, context
        return tunnel_pb2.Tunnel(host_key=self._host_key, port=self._port)

    async def DisconnectAgent(
        self, request: tunnel_pb2.DisconnectAgentRequest, context: Any
    ) -> tunnel_pb2.DisconnectAgentResponse:
        """Cuts an agent's connections."""
        del context
        return tunnel_pb2.DisconnectAgentResponse(connections=self._connections.cut(request.agent_id))

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
