"""The SSH server that agents dial: a key, two kinds of forwarding, and nothing else.

Allowed: direct-tcpip to (`nbd`, 10809), which leads to the NBD server through `nbd_haggling`; one remote listen of the
name `agent-control`. The user `enroll:<agent id>` may show a one-time code as its password and gets nothing else for
it: its key is enrolled, and it dials again. All else (sessions of any kind, other destinations, other listens, tun) is
refused here in the callbacks: options in an authorized_keys file do not bind asyncssh's server. There is no process,
SFTP or SCP factory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import asyncssh
import structlog

from sendense_tunnel.byte_stream import StreamEnded
from sendense_tunnel.clients import AgentRegistry, ExportLeases
from sendense_tunnel.connections import MAX_CONNECTIONS, Connections
from sendense_tunnel.control_doors import CONTROL_NAME, ControlConnection, ControlDoors
from sendense_tunnel.nbd_haggling import Haggling, HagglingEnded
from sendense_tunnel.pipe import ChannelEnd, End, SocketEnd

log = structlog.get_logger()

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""Authenticated and fast with AES-NI; chacha20-poly1305 was measured to hang asyncssh under load."""
KEEPALIVE_SECONDS = 6
KEEPALIVE_MISSES = 3
"""A dead link is noticed after at most (misses + 1) × interval = 24 s."""
LOGIN_SECONDS = 20
HAGGLING_SECONDS = 30.0
NBD_DESTINATION = ("nbd", 10809)
MAX_CHANNELS = 32
"""NBD connections that one SSH connection may carry at a time."""
ENROLLING = "enroll:"
"""User names of agents that show a one-time code begin so; no agent id can."""
CODES_PER_CONNECTION = 3
ENROLLED_SECONDS = 5.0
"""How long a connection stays that was only made to enrol."""
NBD_WINDOW_BYTES = 4 << 20
"""How much an agent may send ahead on one NBD connection: a long fat link stays full, memory stays bounded."""


class Wire:
    """An end of a pipe as the negotiation sees it."""

    def __init__(self, end: End) -> None:
        self._end = end
        self.send = end.send

    async def read(self, length: int) -> bytes:
        """Returns exactly `length` bytes."""
        data = await self._end.stream.read(length)
        self._end.resume()
        return data


class AgentGate(asyncssh.SSHServer):
    """Decides over one SSH connection. The user name is the agent's id, and the key must be that agent's.

    Args:
        registry: Knows the keys.
        leases: Knows the exports' agents.
        doors: Where control is offered.
        nbd_socket: The NBD server.
        connections: All open connections; this one joins while it lives.
    """

    def __init__(
        self,
        registry: AgentRegistry,
        leases: ExportLeases,
        doors: ControlDoors,
        nbd_socket: Path,
        connections: Connections,
    ) -> None:
        self._registry = registry
        self._leases = leases
        self._doors = doors
        self._nbd_socket = nbd_socket
        self._connections = connections
        self._connection: asyncssh.SSHServerConnection | None = None
        self._agent_id = ""
        self._key = ""
        self._enrolling = ""
        self._codes = 0
        self._peer = ""
        self._channels = 0
        self._offers_control = False
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Admits the connection unless there are too many."""
        self._connection = conn
        address = conn.get_extra_info("peername") or ("?", 0)
        self._peer = f"{address[0]}:{address[1]}"
        if not self._connections.admit(conn):
            log.warning("too many connections", peer=self._peer, limit=MAX_CONNECTIONS)
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        if self._connection is not None:
            self._connections.forget(self._connection)
        if self._agent_id:
            log.info("agent disconnected", agent=self._agent_id, peer=self._peer, error=str(exc or ""))

    def begin_auth(self, username: str) -> bool:
        """Nobody is let in without a key or a one-time code."""
        self._enrolling = username.removeprefix(ENROLLING) if username.startswith(ENROLLING) else ""
        return True

    def public_key_auth_supported(self) -> bool:
        """Keys are the only way in, but for those who have only a one-time code yet."""
        return not self._enrolling

    def password_auth_supported(self) -> bool:
        """A password is a one-time code, and good for nothing but to enrol."""
        return bool(self._enrolling)

    async def validate_password(self, username: str, password: str) -> bool:
        """Enrols the key that comes with a one-time code: `<code> <public key>`."""
        del username
        self._codes += 1
        code, _, public_key = password.partition(" ")
        if self._codes > CODES_PER_CONNECTION or not self._enrolling:
            self._ssh.abort()
            return False
        problem = await self._registry.redeem(self._enrolling, code, public_key)
        if problem:
            log.warning("refused", what="code", why=problem, agent=self._enrolling[:64], peer=self._peer)
        return not problem

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Tells whether the key belongs to the agent that the user name claims; the signature is checked after."""
        line = key.export_public_key().decode().strip()
        owner = await self._registry.owner_of(line)
        if owner is None or owner != username:
            log.warning("refused", what="key", agent=username[:64], peer=self._peer, key=key.get_fingerprint())
            return False
        self._key = line
        return True

    def auth_completed(self) -> None:
        """Remembers who it is: the user name for which the key and the signature were good."""
        if self._enrolling:
            log.info("agent enrolled", agent=self._enrolling, peer=self._peer)
            asyncio.get_running_loop().call_later(ENROLLED_SECONDS, self._ssh.abort)
            return
        agent_id = str(self._ssh.get_extra_info("username"))
        if not self._connections.identify(self._ssh, agent_id, self._key):
            log.warning("refused", what="connection", detail="too many", agent=agent_id, peer=self._peer)
            self._ssh.abort()
            return
        self._agent_id = agent_id
        log.info("agent connected", agent=self._agent_id, peer=self._peer)

    def session_requested(self) -> bool:
        """No shell, command, subsystem or terminal, and so neither agent nor X11 forwarding."""
        return self._refuse("session", "shell, command or subsystem")

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> bool | tuple[Any, Coroutine[Any, Any, ChannelEnd]]:
        """Opens an NBD connection; every other destination is refused."""
        del orig_host, orig_port
        if not self._agent_id or (dest_host, dest_port) != NBD_DESTINATION:
            return self._refuse("direct-tcpip", f"{dest_host!r} port {dest_port}")
        if self._channels >= MAX_CHANNELS:
            return self._refuse("direct-tcpip", f"more than {MAX_CHANNELS} NBD connections")
        self._channels += 1
        return self._ssh.create_tcp_channel(window=NBD_WINDOW_BYTES), self._open_nbd()

    def unix_connection_requested(self, dest_path: str) -> bool:
        """No Unix socket of this machine is reachable."""
        return self._refuse("direct-streamlocal", repr(dest_path))

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        """Nothing is listened on for an agent."""
        return self._refuse("tcpip-forward", f"{listen_host!r} port {listen_port}")

    async def unix_server_requested(self, listen_path: str) -> asyncssh.SSHListener | bool:
        """Takes the offer of the agent's gRPC server, once a connection; every other listen is refused."""
        if not self._agent_id or listen_path != CONTROL_NAME:
            return self._refuse("streamlocal-forward", repr(listen_path))
        if self._offers_control:
            return self._refuse("streamlocal-forward", "control is offered already")
        connection = self._ssh
        self._offers_control = True
        control = ControlConnection(agent_id=self._agent_id, connection=connection, peer=self._peer)
        try:
            listener = await self._doors.offer(control)
        except OSError:
            log.exception("no door could be opened", agent=self._agent_id)
            return False
        if connection.is_closed():
            listener.close()
            return False
        return listener

    def tun_requested(self, unit: int | None) -> bool:
        """No network device."""
        return self._refuse("tun", str(unit))

    def tap_requested(self, unit: int | None) -> bool:
        """No network device."""
        return self._refuse("tap", str(unit))

    async def _open_nbd(self) -> ChannelEnd:
        """Returns the session of a new NBD channel; it starts to negotiate as soon as the channel is open."""
        try:
            server = await SocketEnd.connect(self._nbd_socket)
        except OSError as error:
            self._channels -= 1
            log.exception("the NBD server is not reachable", agent=self._agent_id)
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "the NBD server is not reachable") from error
        client = ChannelEnd()
        task = asyncio.create_task(self._serve_nbd(client, server))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return client

    async def _serve_nbd(self, client: ChannelEnd, server: SocketEnd) -> None:
        async def admits(name: str) -> bool:
            return await self._leases.leased_to(name, self._agent_id)

        try:
            async with asyncio.timeout(HAGGLING_SECONDS):
                await client.opened.wait()
                await Haggling(Wire(client), Wire(server), admits, self._refuse).run()
            client.join(server)
            await client.ended.wait()
        except HagglingEnded as ended:
            log.info("nbd connection closed", agent=self._agent_id, why=str(ended))
        except StreamEnded:
            log.debug("nbd connection ended while it was negotiated", agent=self._agent_id)
        except TimeoutError:
            if client.opened.is_set():
                self._refuse("nbd", f"not negotiated within {HAGGLING_SECONDS:g} s")
        finally:
            self._channels -= 1
            client.close()
            server.close()

    @property
    def _ssh(self) -> asyncssh.SSHServerConnection:
        if self._connection is None:
            raise RuntimeError("no connection was made yet")
        return self._connection

    def _refuse(self, what: str, detail: str) -> bool:
        log.warning("refused", what=what, detail=detail[:200], agent=self._agent_id, peer=self._peer)
        return False


async def listen(
    host: str, port: int, host_key: asyncssh.SSHKey, gate: Callable[[], AgentGate]
) -> asyncssh.SSHAcceptor:
    """Listens for agents.

    Args:
        host: Address.
        port: TCP port; 0 for any free one.
        host_key: What agents pin.
        gate: Makes the gate of a new connection.

    Raises:
        OSError: The address cannot be listened on.
    """
    return await asyncssh.listen(
        host,
        port,
        config=None,
        server_factory=gate,
        server_host_keys=[host_key],
        server_version="Sendense",
        encryption_algs=CIPHERS,
        compression_algs=None,
        public_key_auth=True,
        password_auth=True,
        kbdint_auth=False,
        host_based_auth=False,
        gss_host=None,
        allow_pty=False,
        agent_forwarding=False,
        x11_forwarding=False,
        allow_scp=False,
        line_editor=False,
        login_timeout=LOGIN_SECONDS,
        keepalive_interval=KEEPALIVE_SECONDS,
        keepalive_count_max=KEEPALIVE_MISSES,
    )
