"""Forwards TCP connections to the daemon's Unix socket, where an administrator wants that (`tcp_listen`).

qemu-storage-daemon has one NBD listener, a Unix socket; this is the plain proxy in front of it. It looks at no byte
and authenticates nobody: whoever reaches the address reads every export and writes every writable one, which is why it
is off by default. What always holds: connections and memory are bounded (two buffers of 256 KiB each); a peer that has
vanished from the network is noticed within about two minutes, so that it holds no export for ever; a new address
disturbs no transfer in progress. A connection ends with nbdd.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger()

NBD_PORT = 10809
"""The port that IANA gave to NBD; nbd-server's default as well."""

_BUFFER_BYTES = 256 << 10
_KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 6}
_PAUSE_SECONDS = 1.0


class AddressError(ValueError):
    """An address to listen on is none."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen.

    Attributes:
        hosts: IP addresses or names of this machine, at least one.
        port: TCP port; 0 takes a free one.
    """

    hosts: tuple[str, ...]
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it; a name counts as reachable from outside, except localhost."""
        for host in self.hosts:
            try:
                if not ipaddress.ip_address(host).is_loopback:
                    return False
            except ValueError:
                if host != "localhost":
                    return False
        return True


def parse_address(text: str) -> Address:
    """Reads `host:port`, with an IPv6 address in brackets.

    Raises:
        AddressError: It is neither.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"{text!r}: an IPv6 address stands in brackets")
    if not colon or not host:
        raise AddressError(f"{text!r} is not host:port")
    return Address((host,), parse_port(port))


def parse_port(text: str) -> int:
    """Reads a port's number.

    Raises:
        AddressError: It is none.
    """
    if not (text.isascii() and text.isdigit()) or int(text) > 0xFFFF:
        raise AddressError(f"{text!r} is no port")
    return int(text)


def wanted_address(setting: str, generic: Mapping[str, str], restricted: Sequence[str]) -> Address | None:
    """Returns where to listen.

    Args:
        setting: Empty for nowhere, `config`, or `host:port`.
        generic: The keys of the main configuration file, which `config` means. Without `listenaddr` it is the loopback
            address: nbd-server would listen on every address, which nobody should get without having said so.
        restricted: Exports with an `authfile`: nothing enforces it here, so there is no TCP address beside them.

    Raises:
        AddressError: It is no address, or the files demand what is not done here: TLS, or authfiles.
    """
    if not setting:
        return None
    if generic.get("force_tls") in {"true", "1"}:
        raise AddressError("force_tls is set, and TLS is not spoken here: put a TLS proxy in front, or remove the key")
    if restricted:
        raise AddressError(
            f"export {restricted[0]} has an authfile, which is not enforced here: it would be open to all"
        )
    if setting != "config":
        return parse_address(setting)
    hosts = tuple(host.strip() for host in generic.get("listenaddr", "127.0.0.1").split(",") if host.strip())
    if not hosts:
        raise AddressError("listenaddr is empty")
    return Address(hosts, parse_port(generic.get("port", str(NBD_PORT))))


class TcpForwarder:
    """Listens where it is told and forwards what comes.

    Args:
        target: The daemon's Unix socket.
        most: The most connections at the same time; more are closed at once.

    Attributes:
        listening: The addresses, as `host:port`.
        error: Why it does not listen though it is wanted; empty otherwise.
    """

    def __init__(self, target: Path, most: int) -> None:
        self._target = str(target)
        self._most = most
        self._wanted: Address | None = None
        self._acceptors: list[asyncio.Task[None]] = []
        self._transfers: set[asyncio.Task[None]] = set()
        self.listening: list[str] = []
        self.error = ""

    async def listen(self, wanted: Address | None) -> None:
        """Listens there and nowhere else; says in `error` when it cannot, and a later call tries again."""
        if wanted == self._wanted and not self.error:
            return
        await self._stop_listening()
        self._wanted = wanted
        if wanted is None:
            self.error = ""
            return
        try:
            sockets = await _bind(wanted)
        except OSError as error:
            problem = f"cannot listen on {', '.join(wanted.hosts)} port {wanted.port}: {error.strerror or error}"
            if problem != self.error:
                log.warning("no TCP listener", error=problem)
            self.error = problem
            return
        self.error = ""
        self.listening = [_shown(sock) for sock in sockets]
        self._acceptors = [asyncio.create_task(self._accept(sock)) for sock in sockets]
        log.info("listening on TCP", addresses=self.listening)
        if not wanted.is_loopback:
            log.warning("NBD has no authentication: who reaches this address reaches every export", at=self.listening)

    async def close(self) -> None:
        """Stops listening and ends all transfers."""
        await self._stop_listening()
        for task in self._transfers:
            task.cancel()
        await asyncio.gather(*self._transfers, return_exceptions=True)

    async def _stop_listening(self) -> None:
        for task in self._acceptors:
            task.cancel()
        await asyncio.gather(*self._acceptors, return_exceptions=True)
        self._acceptors, self.listening, self._wanted = [], [], None

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    client, peer = await loop.sock_accept(listener)
                except OSError as error:  # out of file descriptors, or the client was gone before it was taken
                    log.warning("a TCP connection could not be taken", error=str(error))
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                if len(self._transfers) >= self._most:
                    client.close()
                    log.warning("TCP connection refused: too many", peer=str(peer), most=self._most)
                    continue
                task = asyncio.create_task(self._forward(client, str(peer)))
                self._transfers.add(task)
                task.add_done_callback(self._transfers.discard)

    async def _forward(self, client: socket.socket, peer: str) -> None:
        loop = asyncio.get_running_loop()
        with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            client.setblocking(False)  # noqa: FBT003
            server.setblocking(False)  # noqa: FBT003
            try:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEPALIVE.items():
                    client.setsockopt(socket.IPPROTO_TCP, option, value)
                await loop.sock_connect(server, self._target)
                log.info("TCP client connected", peer=peer)
                await _converse(client, server)
            except OSError as error:
                log.info("TCP client cut off", peer=peer, error=str(error))


async def _converse(client: socket.socket, server: socket.socket) -> None:
    """Forwards both ways until the server has nothing more to say, then an NBD connection is over, or one side broke.

    Raises:
        OSError: One side broke off.
    """
    asking = asyncio.create_task(_pour(client, server))
    answering = asyncio.create_task(_pour(server, client))
    try:
        await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            await asking  # a client that was reset leaves the server waiting for it
        await answering
    finally:
        for task in (asking, answering):
            task.cancel()
        await asyncio.gather(asking, answering, return_exceptions=True)


async def _pour(source: socket.socket, target: socket.socket) -> None:
    """Passes on what one side sends until it has nothing more to send, then tells the other side so."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while length := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(target, buffer[:length])
    with contextlib.suppress(OSError):  # the other side is gone altogether
        target.shutdown(socket.SHUT_WR)


async def _bind(wanted: Address) -> list[socket.socket]:
    """Returns one listening socket for each address of each host."""
    found = []
    for host in wanted.hosts:
        found += await asyncio.get_running_loop().getaddrinfo(
            host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    with contextlib.ExitStack() as undo:
        sockets = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = undo.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)  # noqa: FBT003
            sock.bind(address)
            sock.listen()
            sockets.append(sock)
        undo.pop_all()
    return sockets


def _shown(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
