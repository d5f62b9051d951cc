"""All of the agent's connections to the tunnel: one for control, some as lanes for data.

Control offers the agent's gRPC socket under the name `agent-control`. A lane is an SSH connection of its own with a
Unix socket here; each NBD connection that libnbd makes to that socket is forwarded to the tunnel's (`nbd`, 10809) and
stays in its lane. A flood of data never delays control: control is asyncssh's, a lane is OpenSSH's client, a process of
its own, wherever it is installed. A lane on which a copy stalled is dialled anew. An agent on the node's own machine
may be told to skip the lanes: `direct` is then the socket of the NBD server itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import asyncssh
import structlog

from sendense_agent.errors import CaptureFailed, TunnelDown
from sendense_agent.link import Dialling, Link
from sendense_agent.openssh import OpenSshLink
from sendense_blockio.errors import StallError
from sendense_blockio.pace import Pace

log = structlog.get_logger()

CONTROL_NAME = "agent-control"
NBD_DESTINATION = ("nbd", 10809)
SERVER_WAIT_SECONDS = 15.0
LANE_WAIT_SECONDS = 30.0


class LaneLink(Protocol):
    """What keeps a lane's connection up.

    Attributes:
        up: Set while it is.
    """

    up: asyncio.Event

    async def keep_up(self) -> None:
        """Dials, and dials again whenever the connection ends; returns only when cancelled."""

    def replace(self) -> None:
        """Ends the connection, and with it what it carries; it is dialled again."""


class Lane:
    """One data connection.

    Attributes:
        socket: Where libnbd connects.
        users: Captures that use it now.
        link: Its SSH connection.
    """

    def __init__(self, number: int, directory: Path, dialling: Dialling, openssh_key: Path | None) -> None:
        self.socket = directory / f"{dialling.agent_id}-lane-{number}.sock"
        self.users = 0
        name = f"lane-{number}"
        self.link: LaneLink
        if openssh_key is None:
            self.link = Link(name, dialling, self._listen)
        else:
            self.link = OpenSshLink(name, dialling, openssh_key, self.socket, NBD_DESTINATION)

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
        openssh_key: The agent's key file, where OpenSSH's client is to carry the lanes; None leaves it to asyncssh.
        direct: The NBD server's own socket, for an agent on its machine; None uses the lanes.
        pace: The limit that all copies share, `pace` for them.
    """

    def __init__(
        self,
        dialling: Dialling,
        grpc_socket: Path,
        lanes: int,
        directory: Path,
        *,
        openssh_key: Path | None = None,
        direct: Path | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.pace = pace
        self._grpc_socket = grpc_socket
        self._direct = direct
        self.control = Link("control", dialling, self._offer_control)
        self._lanes = [
            Lane(number, directory, dialling, openssh_key) for number in range(lanes if direct is None else 0)
        ]

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
                lane.socket.with_suffix(".known_hosts").unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def lane(self) -> AsyncIterator[Path]:
        """Lends the least used lane that is up and yields its socket; replaces it when the copy over it stalls.

        Raises:
            TunnelDown: None came up in time.
        """
        if self._direct is not None:
            yield self._direct
            return
        lane = await self._choose()
        lane.users += 1
        try:
            yield lane.socket
        except CaptureFailed as failure:
            if (failure.metadata.get("side"), failure.metadata.get("cause")) == ("target", StallError.reason):
                log.warning("a lane stalled and is replaced", lane=lane.socket.name)
                lane.link.replace()
            raise
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
