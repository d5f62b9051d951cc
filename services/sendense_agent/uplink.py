"""All of the agent's connections to the tunnel: one for control, some as lanes for data.

Control offers the agent's gRPC socket under the name `agent-control`. A lane is an SSH connection of its own with a
Unix socket here; each NBD connection that libnbd makes to that socket is forwarded to the tunnel's (`nbd`, 10809) and
stays in its lane. A flood of data never delays control.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import structlog

from sendense_agent.errors import TunnelDown
from sendense_agent.link import Dialling, Link

log = structlog.get_logger()

CONTROL_NAME = "agent-control"
NBD_DESTINATION = ("nbd", 10809)
SERVER_WAIT_SECONDS = 15.0
LANE_WAIT_SECONDS = 30.0


class Lane:
    """One data connection.

    Attributes:
        socket: Where libnbd connects.
        users: Captures that use it now.
        link: Its SSH connection.
    """

    def __init__(self, number: int, directory: Path, agent_id: str, dialling: Dialling) -> None:
        self.socket = directory / f"{agent_id}-lane-{number}.sock"
        self.users = 0
        self.link = Link(f"lane-{number}", dialling, self._listen)

    async def _listen(self, connection: asyncssh.SSHClientConnection) -> None:
        self.socket.unlink(missing_ok=True)
        await connection.forward_local_path_to_port(str(self.socket), *NBD_DESTINATION)
        self.socket.chmod(0o600)


class Uplink:
    """The agent's way to the node.

    Args:
        dialling: How to dial.
        grpc_socket: The agent's gRPC server.
        lanes: How many data connections.
        directory: Private directory for the lanes' sockets.
    """

    def __init__(self, dialling: Dialling, grpc_socket: Path, lanes: int, directory: Path) -> None:
        self._grpc_socket = grpc_socket
        self.control = Link("control", dialling, self._offer_control)
        self._lanes = [Lane(number, directory, dialling.agent_id, dialling) for number in range(lanes)]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps all connections up for the time of the block."""
        links = [self.control, *(lane.link for lane in self._lanes)]
        tasks = [asyncio.create_task(link.keep_up()) for link in links]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for lane in self._lanes:
                lane.socket.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def lane(self) -> AsyncIterator[Path]:
        """Lends the least used lane that is up and yields its socket.

        Raises:
            TunnelDown: None came up in time.
        """
        lane = await self._choose()
        lane.users += 1
        try:
            yield lane.socket
        finally:
            lane.users -= 1

    async def _choose(self) -> Lane:
        waits = [asyncio.create_task(lane.link.up.wait()) for lane in self._lanes]
        try:
            await asyncio.wait(waits, timeout=LANE_WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        ready = [lane for lane in self._lanes if lane.link.up.is_set()]
        if not ready:
            raise TunnelDown(LANE_WAIT_SECONDS)
        return min(ready, key=lambda lane: lane.users)

    async def _offer_control(self, connection: asyncssh.SSHClientConnection) -> None:
        async with asyncio.timeout(SERVER_WAIT_SECONDS):
            while not self._grpc_socket.exists():  # noqa: ASYNC110  # gRPC tells nobody when it listens
                await asyncio.sleep(0.02)
        await connection.forward_remote_path(CONTROL_NAME, str(self._grpc_socket))
