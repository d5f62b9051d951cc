"""The SSH connections that are open now, and whose: bounded for each agent, cut when its key is removed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import asyncssh
import structlog

from sendense_tunnel.clients import AgentRegistry

log = structlog.get_logger()

MAX_CONNECTIONS = 256
"""SSH connections at a time, authenticated or not."""
MAX_OF_AGENT = 72
"""SSH connections of one agent at a time: control and as many lanes as an agent can be told to use, twice, since it may
come back before the old ones were noticed to be dead."""
SWEEP_SECONDS = 30.0
"""How often the registry is asked whether the connected agents are still enrolled, in case it could not tell."""


class Connections:
    """All open connections."""

    def __init__(self) -> None:
        self._open: set[asyncssh.SSHServerConnection] = set()
        self._owners: dict[asyncssh.SSHServerConnection, tuple[str, str]] = {}

    def admit(self, connection: asyncssh.SSHServerConnection) -> bool:
        """Takes note of a new connection; returns False when there are too many."""
        if len(self._open) >= MAX_CONNECTIONS:
            return False
        self._open.add(connection)
        return True

    def identify(self, connection: asyncssh.SSHServerConnection, agent_id: str, public_key: str) -> bool:
        """Takes note of whose connection it is; returns False when that agent has too many."""
        if sum(owner == agent_id for owner, _ in self._owners.values()) >= MAX_OF_AGENT:
            return False
        self._owners[connection] = (agent_id, public_key)
        return True

    def forget(self, connection: asyncssh.SSHServerConnection) -> None:
        """Takes note of a connection's end."""
        self._open.discard(connection)
        self._owners.pop(connection, None)

    def cut(self, agent_id: str) -> int:
        """Ends all connections of an agent; returns how many there were."""
        return self._abort(each for each, (owner, _) in list(self._owners.items()) if owner == agent_id)

    def close(self) -> None:
        """Ends all connections."""
        self._abort(list(self._open))

    async def keep_enrolled(self, registry: AgentRegistry) -> None:
        """Cuts agents that were removed, for as long as it runs."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for agent_id, public_key in set(self._owners.values()):
                if await registry.has_removed(agent_id, public_key):
                    log.warning("a removed agent is cut off", agent=agent_id, connections=self.cut(agent_id))

    @staticmethod
    def _abort(connections: Iterable[asyncssh.SSHServerConnection]) -> int:
        count = 0
        for connection in connections:
            connection.abort()
            count += 1
        return count
