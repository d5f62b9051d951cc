"""The doors to the agents' gRPC servers: one Unix socket an agent, which leads into its newest control connection."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import structlog

from sendense_rpc.errors import Kind, SendenseError
from sendense_tunnel.pipe import ChannelEnd, SocketEnd

log = structlog.get_logger()

CONTROL_NAME = "agent-control"
"""The one name under which an agent may offer a socket."""
_AGENT_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_OPEN_TIMEOUT = 10.0


class AgentNotConnected(SendenseError):
    """Nobody of this name can be reached through the tunnel now."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            f"the agent '{agent_id}' is not connected",
            kind=Kind.UNAVAILABLE,
            reason="NO_AGENT",
            help="See `sendense-ctl agent list`; the agent dials again by itself when it runs.",
            retryable=True,
            metadata={"agent_id": agent_id},
        )


@dataclass(frozen=True)
class ControlConnection:
    """An SSH connection over which an agent offers its gRPC server.

    Attributes:
        agent_id: The enrolled agent.
        connection: The SSH connection.
        peer: Where it came from, `address:port`.
        connected_at: Since when.
    """

    agent_id: str
    connection: asyncssh.SSHServerConnection
    peer: str
    connected_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))


@dataclass
class _Door:
    path: Path
    server: asyncio.AbstractServer
    offers: list[ControlConnection]


class ControlDoors:
    """Opens a door at an agent's first offer and closes it with its last one.

    Args:
        directory: Where the sockets lie (`<agent_id>.sock`, 0600); made when missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._doors: dict[str, _Door] = {}
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def offer(self, control: ControlConnection) -> asyncssh.SSHListener:
        """Leads the agent's door into `control` from now on; closing the returned listener takes the offer back.

        Raises:
            OSError: The socket cannot be made.
        """
        async with self._lock:
            door = self._doors.get(control.agent_id)
            if door is None:
                door = await self._open(control.agent_id)
            door.offers.append(control)
        log.info("control offered", agent=control.agent_id, peer=control.peer, offers=len(door.offers))
        return _Offer(self, control)

    def withdraw(self, control: ControlConnection) -> None:
        """Takes an offer back; the one before it, if its connection still lives, is used again."""
        door = self._doors.get(control.agent_id)
        if door is None or control not in door.offers:
            return
        door.offers.remove(control)
        log.info("control withdrawn", agent=control.agent_id, peer=control.peer, offers=len(door.offers))
        if not door.offers:
            del self._doors[control.agent_id]
            door.server.close()
            door.path.unlink(missing_ok=True)

    def connections(self) -> list[tuple[ControlConnection, Path]]:
        """Returns for each reachable agent its current control connection and its door, by agent."""
        return [(door.offers[-1], door.path) for _, door in sorted(self._doors.items())]

    def door_of(self, agent_id: str) -> Path:
        """Returns the socket that leads to an agent.

        Raises:
            AgentNotConnected: It offers no control now.
        """
        door = self._doors.get(agent_id)
        if door is None:
            raise AgentNotConnected(agent_id)
        return door.path

    def close(self) -> None:
        """Closes all doors."""
        for door in self._doors.values():
            door.server.close()
            door.path.unlink(missing_ok=True)
        self._doors.clear()

    async def _open(self, agent_id: str) -> _Door:
        if not _AGENT_ID.fullmatch(agent_id):
            raise OSError(f"'{agent_id}' cannot name a socket")
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._directory / f"{agent_id}.sock"
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: _Visitor(self, agent_id), str(path))
        path.chmod(0o600)
        door = self._doors[agent_id] = _Door(path, server, [])
        return door

    def lead(self, agent_id: str, visitor: SocketEnd) -> None:
        """Connects a visitor of a door with the agent's gRPC server, or closes it."""
        task = asyncio.create_task(self._lead(agent_id, visitor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _lead(self, agent_id: str, visitor: SocketEnd) -> None:
        door = self._doors.get(agent_id)
        if door is None:
            visitor.close()
            return
        control = door.offers[-1]
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT):
                end = ChannelEnd()
                await control.connection.create_unix_connection(lambda: end, CONTROL_NAME)
        except (asyncssh.Error, OSError, TimeoutError) as error:
            log.warning("the agent's control connection does not answer", agent=agent_id, error=str(error))
            visitor.close()
            return
        visitor.join(end)


class _Visitor(SocketEnd):
    """A process of this machine that connected to a door."""

    def __init__(self, doors: ControlDoors, agent_id: str) -> None:
        super().__init__()
        self._doors = doors
        self._agent_id = agent_id

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._doors.lead(self._agent_id, self)


class _Offer(asyncssh.SSHListener):
    """What asyncssh closes when the agent cancels its offer or its connection ends."""

    def __init__(self, doors: ControlDoors, control: ControlConnection) -> None:
        super().__init__()
        self._doors = doors
        self._control = control

    def close(self) -> None:
        self._doors.withdraw(self._control)

    async def wait_closed(self) -> None:
        return
