"""The tunnel: agents dial it over SSH; inside they reach their own NBD exports and offer their gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from sendense.agent.v1 import agent_pb2
from sendense.tunnel.v1 import tunnel_pb2_grpc
from sendense_rpc.channel import service_peer
from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.relay import Relay
from sendense_rpc.server import Service, Servicer, run
from sendense_tunnel.clients import AgentRegistry, ExportLeases
from sendense_tunnel.config import TunnelSettings
from sendense_tunnel.connections import Connections
from sendense_tunnel.control_doors import ControlDoors
from sendense_tunnel.host_key import load_or_create_host_key
from sendense_tunnel.servicer import TunnelServicer
from sendense_tunnel.ssh_server import AgentGate, listen

log = structlog.get_logger()

NAME = "tunnel"


@contextlib.asynccontextmanager
async def open_tunnel(settings: TunnelSettings) -> AsyncIterator[Service]:
    """Listens for agents and yields the gRPC service that tells about them; at the end all agents are cut off.

    Raises:
        OSError: The address cannot be listened on.
        HostKeyUnsafe: Others can read the host key.
    """
    access = service_peer(settings, "access", NAME)
    exports = service_peer(settings, "exports", NAME)
    doors = ControlDoors(settings.agents_dir)
    relay = Relay(agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name, doors.door_of)
    connections = Connections()
    registry, leases = AgentRegistry(access), ExportLeases(exports)
    host_key = load_or_create_host_key(settings.host_key_file)
    acceptor = await listen(
        settings.listen_host,
        settings.listen_port,
        host_key,
        lambda: AgentGate(registry, leases, doors, settings.nbd_socket, connections),
    )
    host, port = acceptor.get_addresses()[0][:2]
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.port_file.write_text(f"{port}\n")
    sweeping = asyncio.create_task(connections.keep_enrolled(registry))
    log.info("listening for agents", address=f"{host}:{port}", host_key=host_key.get_fingerprint())
    try:
        yield Service(
            name=NAME,
            servicers=[
                Servicer(
                    "sendense.tunnel.v1.TunnelService",
                    TunnelServicer(doors, connections, host_key.export_public_key().decode(), int(port)),
                    tunnel_pb2_grpc.add_TunnelServiceServicer_to_server,
                )
            ],
            check=lambda: check_listener(str(host), int(port)),
            relays=[relay],
        )
    finally:
        settings.port_file.unlink(missing_ok=True)
        acceptor.close()
        sweeping.cancel()
        connections.close()
        await acceptor.wait_closed()
        doors.close()
        await relay.close()
        await access.close()
        await exports.close()


async def check_listener(host: str, port: int) -> None:
    """Raises unless the SSH server greets a new connection."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        greeting = await reader.readline()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if not greeting.startswith(b"SSH-2.0-"):
        raise SendenseError(
            f"no SSH server answers at {host}:{port}", kind=Kind.UNAVAILABLE, reason="TUNNEL_NOT_LISTENING"
        )


def main() -> None:
    """Runs the tunnel until SIGTERM or SIGINT."""
    settings = TunnelSettings()
    run(lambda: open_tunnel(settings), settings, NAME)


if __name__ == "__main__":
    main()
