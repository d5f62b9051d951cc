"""The capture agent: sits beside the vCenter, dials the tunnel, and does what the backup service asks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator

import structlog

from sendense.agent.v1 import agent_pb2_grpc
from sendense_agent.agent import Agent, Limits
from sendense_agent.config import AgentSettings
from sendense_agent.fencing import Fence
from sendense_agent.joining import run_join
from sendense_agent.link import Dialling
from sendense_agent.own_key import load_or_create_key
from sendense_agent.readers.choice import Readers
from sendense_agent.servicer import AgentServicer
from sendense_agent.uplink import Uplink
from sendense_agent.vcenter import VCenters
from sendense_rpc.errors import Kind, SendenseError
from sendense_rpc.server import Service, Servicer, run

log = structlog.get_logger()

NAME = "agent"


@contextlib.asynccontextmanager
async def open_agent(settings: AgentSettings) -> AsyncIterator[Service]:
    """Dials the tunnel and yields the gRPC service that is offered through it.

    Raises:
        KeyUnsafe: Others can read the agent's key.
    """
    key = load_or_create_key(settings.key_file, f"sendense-agent-{settings.id}")
    settings.sockets_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    readers = settings.sockets_dir / f"{settings.id}-readers"
    shutil.rmtree(readers, ignore_errors=True)  # of a run that was killed; its readers died with it
    dialling = Dialling(settings.id, key, settings.host_key_file, settings.tunnel_address)
    uplink = Uplink(
        dialling,
        settings.socket(NAME),
        settings.lane_count,
        settings.sockets_dir,
        openssh_key=settings.openssh_key,
        direct=settings.direct_socket,
        pace=settings.pace,
    )
    vcenters = VCenters(settings.vcenters_file)
    log.info(
        "agent",
        id=settings.id,
        public_key=f"{settings.key_file}.pub",
        lanes=settings.lane_count,
        data_path=settings.data_path,
    )

    async def check() -> None:
        if not uplink.control.up.is_set():
            raise SendenseError("not connected to the tunnel", kind=Kind.UNAVAILABLE, reason="TUNNEL_DOWN")

    servicer = Servicer(
        "sendense.agent.v1.AgentService",
        AgentServicer(
            Agent(
                vcenters,
                uplink,
                Readers(settings.reader_choice(), readers),
                Fence(settings.fence_file),
                Limits(settings.disks_at_once, settings.snapshots_at_once),
            )
        ),
        agent_pb2_grpc.add_AgentServiceServicer_to_server,
    )
    try:
        async with uplink.running():
            yield Service(NAME, [servicer], check)
    finally:
        await vcenters.close()


def main() -> None:
    """Runs the agent until SIGTERM or SIGINT."""
    settings = run_join(AgentSettings())
    run(lambda: open_agent(settings), settings, NAME)


if __name__ == "__main__":
    main()
