"""An SSH channel and a Unix socket joined: bytes go through in callbacks, each side slowed to the other's pace.

Until two ends are joined, what an end receives is held (at most `HELD_BYTES`, then it is paused) for a coroutine to
read. An end that is closed or lost closes its peer, after what was sent to it is on its way.
"""

from __future__ import annotations

import abc
import asyncio
from pathlib import Path
from typing import Any, cast

import asyncssh
from typing_extensions import override

from sendense_tunnel.byte_stream import ByteStream
from sendense_tunnel.socket_buffers import connected_unix_socket

UNSENT_BYTES = 1 << 20
"""How much may wait for a slow reader before the peer is paused: one NBD request of the copy engine."""
HELD_BYTES = 64 << 10
"""How much an end may hold before it is joined: more than any negotiation needs."""


class End(abc.ABC):
    """One side of a pipe.

    Attributes:
        stream: what was received before `join`.
        ended: set when the outside ended.
    """

    def __init__(self) -> None:
        self.stream = ByteStream()
        self.ended = asyncio.Event()
        self._peer: End | None = None

    @abc.abstractmethod
    def send(self, data: bytes) -> None:
        """Sends bytes to the outside; what cannot go at once is kept, and `pause` of the peer is called."""

    @abc.abstractmethod
    def pause(self) -> None:
        """Stops receiving from the outside."""

    @abc.abstractmethod
    def resume(self) -> None:
        """Receives again."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes towards the outside once all was sent; closing twice is no error."""

    @property
    @abc.abstractmethod
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""

    def join(self, peer: End) -> None:
        """Pipes from here on; what was held goes first."""
        self._lead_to(peer)
        peer._lead_to(self)
        if self.closed or peer.closed:
            self.lost()
            peer.lost()

    def _lead_to(self, peer: End) -> None:
        peer.send(self.stream.take_rest())
        self._peer = peer
        self.resume()

    def received(self, data: bytes) -> None:
        """Takes bytes from the outside."""
        if self._peer is not None:
            self._peer.send(data)
            return
        self.stream.feed(data)
        if self.stream.held > HELD_BYTES:
            self.pause()

    def lost(self) -> None:
        """The outside ended, or wants no more."""
        self.stream.end()
        self.ended.set()
        if self._peer is not None:
            peer, self._peer = self._peer, None
            peer.close()

    def full(self) -> None:
        """Sending must wait: the peer stops receiving."""
        if self._peer is not None:
            self._peer.pause()

    def drained(self) -> None:
        """Sending goes on."""
        if self._peer is not None:
            self._peer.resume()


class SocketEnd(End, asyncio.Protocol):
    """The side that is a Unix socket of this machine."""

    def __init__(self) -> None:
        super().__init__()
        self._transport: asyncio.Transport | None = None
        self._paused = False

    @classmethod
    async def connect(cls, path: Path) -> SocketEnd:
        """Connects to a Unix socket.

        Raises:
            OSError: Nobody listens there.
        """
        connected = await connected_unix_socket(path)
        _, end = await asyncio.get_running_loop().create_unix_connection(cls, sock=connected)
        return end

    @override
    def send(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    @override
    def pause(self) -> None:
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    @override
    def resume(self) -> None:
        if self._transport is not None and self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    @override
    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    @override
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES)

    @override
    def data_received(self, data: bytes) -> None:
        self.received(data)

    @override
    def eof_received(self) -> bool:
        return False

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost()

    @override
    def pause_writing(self) -> None:
        self.full()

    @override
    def resume_writing(self) -> None:
        self.drained()


class ChannelEnd(End, asyncssh.SSHTCPSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """The side that is a channel of an agent's SSH connection."""

    def __init__(self) -> None:
        super().__init__()
        self._channel: Any = None
        self.opened = asyncio.Event()

    @override
    def send(self, data: bytes) -> None:
        if data and not self.closed:
            self._channel.write(data)

    @override
    def pause(self) -> None:
        if self._channel is not None:
            self._channel.pause_reading()

    @override
    def resume(self) -> None:
        if self._channel is not None:
            self._channel.resume_reading()

    @override
    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    @property
    @override
    def closed(self) -> bool:
        return self._channel is None or self._channel.is_closing()

    @override
    def connection_made(self, chan: Any) -> None:
        self._channel = chan
        self.opened.set()

    @override
    def data_received(self, data: bytes, datatype: int | None) -> None:
        del datatype
        self.received(data)

    @override
    def eof_received(self) -> bool:
        self.lost()
        return False

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost()

    @override
    def pause_writing(self) -> None:
        self.full()

    @override
    def resume_writing(self) -> None:
        self.drained()
