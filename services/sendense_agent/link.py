"""One SSH connection to the tunnel that is kept up: dialled again with back-off, forever, the host key pinned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import stamina
import structlog

log = structlog.get_logger()

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
KEEPALIVE_SECONDS = 6
KEEPALIVE_MISSES = 3
"""A dead link is noticed after at most (misses + 1) × interval = 24 s."""
CONNECT_SECONDS = 20
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 15.0
SHORT_LIFE_SECONDS = 10.0
"""A connection that ended sooner counts as a failed attempt, so that being thrown out at once backs off."""


class LinkLost(Exception):
    """A connection ended soon after it was made."""


@dataclass(frozen=True)
class Dialling:
    """What is needed to dial.

    Attributes:
        agent_id: The user name.
        key: The agent's key.
        host_key_file: The tunnel's pinned public key; read at each attempt.
        address: Tells host and port; asked at each attempt.
    """

    agent_id: str
    key: asyncssh.SSHKey
    host_key_file: Path
    address: Callable[[], tuple[str, int]]

    async def connect(self) -> asyncssh.SSHClientConnection:
        """Connects once.

        Raises:
            asyncssh.HostKeyNotVerifiable: Another host key than the pinned one.
            asyncssh.Error: The server refused.
            OSError: It cannot be reached, or the pinned key cannot be read.
        """
        host, port = self.address()
        pinned = asyncssh.read_public_key(self.host_key_file)
        return await asyncssh.connect(
            host,
            port,
            config=None,
            username=self.agent_id,
            client_keys=[self.key],
            known_hosts=([pinned], [], []),
            agent_path=None,
            gss_host=None,
            preferred_auth="publickey",
            encryption_algs=CIPHERS,
            compression_algs=None,
            connect_timeout=CONNECT_SECONDS,
            login_timeout=CONNECT_SECONDS,
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVE_MISSES,
        )


class Link:
    """Keeps one connection up until it is closed.

    Args:
        name: For logs, such as `control`.
        dialling: How to dial.
        prepare: Called with each new connection before it counts as up; what it raises ends the attempt.
    """

    def __init__(
        self, name: str, dialling: Dialling, prepare: Callable[[asyncssh.SSHClientConnection], Awaitable[None]]
    ) -> None:
        self._name = name
        self._dialling = dialling
        self._prepare = prepare
        self._connection: asyncssh.SSHClientConnection | None = None
        self.up = asyncio.Event()

    def replace(self) -> None:
        """Ends the connection, and with it what it carries; it is dialled again."""
        self.up.clear()
        if self._connection is not None:
            self._connection.abort()

    async def keep_up(self) -> None:
        """Dials, and dials again whenever the connection ends; returns only when cancelled."""
        while True:
            async for attempt in stamina.retry_context(
                on=(OSError, ValueError, asyncssh.Error, asyncssh.KeyImportError, LinkLost),
                attempts=None,
                timeout=None,
                wait_initial=FIRST_WAIT_SECONDS,
                wait_max=LONGEST_WAIT_SECONDS,
                wait_jitter=1.0,
            ):
                with attempt:
                    await self._one_life()

    async def _one_life(self) -> None:
        began = time.monotonic()
        try:
            connection = await self._dialling.connect()
        except asyncssh.HostKeyNotVerifiable:
            log.exception(
                "the tunnel's host key is not the pinned one: not connected",
                link=self._name,
                pinned=str(self._dialling.host_key_file),
            )
            raise
        self._connection = connection
        try:
            await self._prepare(connection)
            self.up.set()
            log.info("connected to the tunnel", link=self._name, agent=self._dialling.agent_id)
            await connection.wait_closed()
        finally:
            self.up.clear()
            connection.abort()
        log.warning("the connection to the tunnel ended", link=self._name)
        if time.monotonic() - began < SHORT_LIFE_SECONDS:
            raise LinkLost(f"{self._name} ended soon after it was made")
