"""What the access service asks the tunnel: what agents must know to dial it, and to cut one off."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from sendense.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc
from sendense_rpc.channel import Peer
from sendense_rpc.errors import RemoteError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What an agent must know to dial: the pinned host key (one line), and the port that is listened on."""

    host_key: str
    port: int


class TunnelClient:
    """The tunnel's gRPC."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub = tunnel_pb2_grpc.TunnelServiceStub(peer.channel)

    async def describe(self) -> Tunnel:
        """Returns what agents must know.

        Raises:
            RemoteError: It does not answer.
        """
        found = await self._peer.call(self._stub.GetTunnel, tunnel_pb2.GetTunnelRequest())
        return Tunnel(found.host_key, found.port)

    async def disconnect(self, agent_id: str) -> None:
        """Cuts an agent's connections; a tunnel that does not answer looks for removed agents by itself."""
        try:
            await self._peer.call(self._stub.DisconnectAgent, tunnel_pb2.DisconnectAgentRequest(agent_id=agent_id))
        except RemoteError as error:
            log.warning("the tunnel did not cut the agent off", agent=agent_id, error=str(error))

    async def close(self) -> None:
        """Closes the connection."""
        await self._peer.close()
